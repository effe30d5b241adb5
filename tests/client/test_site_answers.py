"""What a site answers to a message, before it trains: what a server must not leave out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fedsa.algorithms import make_algorithm
from fedsa.client.answers import Answers
from fedsa.client.sent import SentAnswers
from fedsa.messages import Message, decode, encode
from fedsa.steps.adaptive_clipping import NORM, AdaptiveMean
from fedsa.steps.chain import Chain
from fedsa.types import Factor, Key

A = Key("layer", Factor.A)


def site() -> Any:
    """A site without a model: a question that it must refuse never comes to one."""
    model = SimpleNamespace(initial={A: torch.zeros(2, 3)})
    return SimpleNamespace(
        rows={"a": None, "b": None},
        rounds=3,
        algorithm=make_algorithm("fedit", {}),
        learner=SimpleNamespace(model=model),
        steps=Chain((AdaptiveMean(1.0, 1.0, 0.5, 0.2, 1.0),)),
    )


@pytest.mark.parametrize("norms", [{}, {"a": 1.0}], ids=["of none", "of one"])
def test_a_server_that_leaves_out_the_clipping_norm_is_refused_and_the_site_goes_on(
    tmp_path: Path, norms: dict[str, float]
) -> None:
    answers = Answers(cast(Any, site()), "a-run", "agreed", SentAnswers(tmp_path, "north"))
    states = {
        client: {A: torch.zeros(2, 3), **({NORM: torch.tensor(norms[client])} if client in norms else {})}
        for client in ("a", "b")
    }
    about = {"do": "train", "versions": {"a": 0, "b": 0}, "held": {"a": 0, "b": 0}, "keep": [0]}
    answer = decode(answers.handle(encode(Message("step", "a-run", 1, about, states))))
    assert answer.kind == "refuse"
    client = "b" if norms else "a"
    assert answer.about["why"] == f"client {client!r} is not sent privacy.clipping_norm:note:default in round 1"
