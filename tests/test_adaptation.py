"""Clients that were not in the federation, and one model for all."""
from __future__ import annotations
from collections.abc import Callable
from typing import Any
import pytest

def test_smoke(tiny_run: Callable[..., Any]) -> None:
    run = tiny_run("holdout_clients=0.3", "adaptation.share_personal=true", "adaptation.start=nearest", "evaluation.global_model=fit", "data.partition={kind='iid', clients=6}")
    print(run.summary["unseen"], run.summary["global_model"])
    run = tiny_run("personal_state=reconstruct", "evaluation.global_model=average","adaptation.share_personal=true")
    print(run.summary["global_model"])
    assert 0
