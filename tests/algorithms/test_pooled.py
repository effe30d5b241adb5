"""Pooled: the training of one client that has all rows, measured on each client; it is of a simulation only."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedsa.agreement import Agreement
from fedsa.algorithms import make_algorithm
from fedsa.commands.shared.display import show_summary
from fedsa.commands.shared.methods import describe
from fedsa.commands.shared.methods_shown import as_text, overview
from fedsa.data.partition import ClientRows
from fedsa.engines.deployed import check_deployable
from fedsa.errors import ConfigError, UserError
from fedsa.federation import Federation
from fedsa.recipe import Recipe, Scope
from fedsa.runs.audit.subject import Subject
from fedsa.runs.report import write_report
from fedsa.server import Server
from fedsa.types import State
from support.tiny_runs import TinyRun

SETTINGS = ("algorithm=pooled", "training.trainer=sequential", "rounds=2", "training.learning_rate=0.05")


def trained_on_all_rows(recipe: Recipe, like: Federation, states: Any) -> State:
    """What local training comes to of one client that has the training rows of all."""
    federation, (first, *_) = Federation.from_recipe(recipe), like.clients
    rows = np.sort(np.concatenate([like.rows.partition.clients[client].train for client in like.clients]))
    nobody = np.arange(0)
    site = replace(federation.site(states), rows={first: ClientRows(rows, nobody, nobody)})
    server = Server(federation.algorithm, federation.initial_state(), [first], seed=0)
    for round in range(1, recipe.rounds + 1):
        server.end_round(round, site.train(server.begin_round(round)))
    return states.load_client(first, recipe.rounds).tensors


class _States:
    """Clients' states, in memory."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Any] = {}

    def load_client(self, client: str, round: int) -> Any:
        return self._kept.get((client, round))

    def save_client(self, client: str, round: int, state: Any) -> None:
        self._kept[client, round] = state

    def load_ahead(self, clients: Any, round: int) -> None:
        pass


@pytest.mark.parametrize(("more", "times"), [((), 3), (("fraction_train=0.6", "holdout_clients=0.0"), 2)])
def test_it_is_the_training_of_one_client_that_has_all_rows(
    tiny_run: Callable[..., TinyRun], tiny_recipe: Callable[..., Recipe], more: tuple[str, ...], times: int
) -> None:
    """To the byte, and with the steps of all clients that would train in a round; everybody has it."""
    pooled = tiny_run(*SETTINGS, *more)
    assert len(pooled.federation.clients) == 3
    local = tiny_recipe(*SETTINGS, "algorithm=local", f"training.local_steps={3 * times}")
    expected = trained_on_all_rows(local, pooled.federation, _States())
    for client in pooled.federation.clients:
        mine = pooled.personal(client)
        assert {key: mine[key].numpy().tobytes() for key in expected} == {
            key: value.numpy().tobytes() for key, value in expected.items()
        }


def test_passes_over_all_rows_stay_as_many(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(*SETTINGS)
    training = recipe.training.model_copy(update={"local_steps": None, "local_epochs": 2})
    federation = Federation.from_recipe(recipe.model_copy(update={"training": training}))
    assert federation.site(_States()).learner.training.local_epochs == 2


def test_rows_of_clients_that_are_held_out_are_not_among_them(tiny_recipe: Callable[..., Recipe]) -> None:
    federation = Federation.from_recipe(tiny_recipe(*SETTINGS, "holdout_clients=0.34"))
    (outside,), (first, *others) = federation.held_out, federation.clients
    site, rows = federation.site(_States()), federation.rows.partition.clients
    assert not set(rows[outside].train) & set(site.rows[first].train)
    assert set(rows[others[0]].train) < set(site.rows[first].train)
    assert np.array_equal(site.rows[first].test, rows[first].test), "it is measured on its own rows"
    assert len({*site.rows[first].train} & {*np.concatenate([rows[each].test for each in rows])}) == 0


def test_a_run_says_that_it_is_no_federation(tiny_run: Callable[..., TinyRun]) -> None:
    run = tiny_run(*SETTINGS)
    assert "algorithm = 'pooled' is no federation" in run.summary["notes"][0]
    assert run.federation.server(run.federation.initial_state(), {}).sample(1) == run.federation.clients[:1]
    page = write_report(run.folder.path).read_text(encoding="utf-8")
    assert page.count("no federation") == 3, "in words, where others say what was sent, and in the notes"
    assert "rows of data are not sent" not in page
    assert "What was sent" not in page
    shown = Console(file=io.StringIO(), width=200)
    show_summary(shown, run.summary)
    assert "No federation: the training rows of all clients were put together" in shown.file.getvalue()
    assert "Sent by each client" not in shown.file.getvalue()
    with pytest.raises(UserError, match="all rows were put together, so nothing of a single client can be audited"):
        Subject.open(run.folder.path, federation=run.federation)


def test_no_site_takes_part_in_it(tiny_run: Callable[..., TinyRun], tiny_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError, match="pooled puts all rows together, which stay at their sites"):
        check_deployable(tiny_recipe(*SETTINGS), 3)
    federation = tiny_run(*SETTINGS).federation
    agreement = Agreement.parse(federation.agreement.text())
    with pytest.raises(ConfigError, match="pooled is of a simulation: rows stay at their sites"):
        Federation.of_site(agreement, federation.recipe.of_scope(Scope.MACHINE))


def serving(recipe: Recipe) -> Server:
    """The server of a recipe, before the first round."""
    federation = Federation.from_recipe(recipe)
    return federation.server(federation.initial_state(), {})


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("evaluation.evaluate_after=both", "pooled trains nothing at a client"),
        ("privacy={kind='example', noise_multiplier=1.0}", "in which every row leaves its client"),
        ("secure_aggregation=true", "so there is no mean of updates"),
        ("server={optimizer='fedadam', learning_rate=0.1}", "so there is no mean of updates"),
        ("personal_state=reconstruct", "keeps nothing at the client"),
        ("share_head=false", "pooled trains one head for all"),
    ],
)
def test_what_needs_a_federation_is_refused(tiny_recipe: Callable[..., Recipe], setting: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        serving(tiny_recipe(*SETTINGS, setting))


def test_it_says_what_it_sends() -> None:
    entry = describe("pooled")
    assert overview([entry])[1][0][:3] == ["pooled", "all its rows", "nothing"]
    assert "in a simulation only" in "\n".join(part for part in as_text(entry) if isinstance(part, str))
    assert make_algorithm("pooled", {}).pools_rows
    assert not make_algorithm("fedit", {}).pools_rows
