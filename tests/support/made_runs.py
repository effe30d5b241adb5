"""Run folders of runs that never were: their figures are made up, their files are fedsa's own."""

from __future__ import annotations

import json
from pathlib import Path

from fedsa.store import Progress, RunFolder

RECIPE = """
algorithm = "fedsa"
rounds = 3
[model]
path = "part:all-minilm-l6-v2"
[adapter]
r = 8
[data]
path = "/home/someone/secret-ward/patients.csv"
[data.partition]
kind = "column"
column = "ward"
"""
PLAN = [
    {"factor": "A", "tensors": 12, "parameters": 1000, "trained": True, "sent": True, "received": True},
    {"factor": "B", "tensors": 12, "parameters": 2000, "trained": True, "sent": False, "received": False},
    {"factor": "head", "tensors": 2, "parameters": 500, "trained": True, "sent": False, "received": False},
]


def summary_of(clients: list[str], metric: str = "accuracy") -> dict:
    """Return what the summary of a run of three rounds holds."""
    test = {"weighted_mean": 0.8613, "mean": 0.85, "std": 0.0312, "worst": 0.78, "worst_client": clients[-1]}
    return {
        "algorithm": "fedsa",
        "source": "arXiv:2410.01463",
        "variant": "lora",
        "rounds": 3,
        "clients": len(clients),
        "seed": 7,
        "recipe": "quickstart",
        "metric": metric,
        "evaluated_after": "aggregate",
        "chosen_round": 2,
        "chosen_by": "weighted mean of validation accuracy",
        "test": {"round": 2, **test},
        "test_final": {"round": 3, **test, "weighted_mean": 0.8401},
        "trained_parameters": 3500,
        "upload_parameters": 1000,
        "upload_bytes": 4000,
        "download_bytes": 4000,
        "total_upload_bytes": 4000 * 3 * len(clients),
        "total_download_bytes": 4000 * 3 * len(clients),
        "train_seconds": 40.1,
        "evaluation_seconds": 8.0,
        "wall_seconds": 200.0,
        "peak_rss_bytes": 900_000_000,
        "interruptions": 1,
        "sharing_plan": PLAN,
        "per_client": {
            client: {
                "train_examples": 300,
                "validation_examples": 70,
                "test_examples": 100,
                "labels": {"negative": 180, "positive": 290},
                "majority": 0.61,
                "before": 0.5,
                "test": {metric: 0.86 if number else 0.6, "loss": 0.3},
                "test_final": {metric: 0.84, "loss": 0.3},
            }
            for number, client in enumerate(clients)
        },
    }


def metrics_of(clients: list[str], metric: str = "accuracy") -> list[dict]:
    """Return the lines of its metrics: the n-th client is n thousandths better than the first."""
    return [
        {
            "round": number,
            "client": client,
            "train": {"loss": 0.7 - 0.1 * number, "steps": 10, "seconds": 1.2} if number else None,
            "upload_bytes": 4000 if number else 0,
            "download_bytes": 4000 if number else 0,
            "validation": {"examples": 10 + place, metric: 0.5 + 0.1 * number + 0.001 * place, "loss": 0.4},
        }
        for number in range(4)
        for place, client in enumerate(clients)
    ]


def make_run(
    folder: Path,
    clients: list[str],
    summary: dict | None = None,
    metrics: list[dict] | None = None,
    recipe: str = RECIPE,
) -> Path:
    """Write a finished run."""
    metrics = metrics_of(clients) if metrics is None else metrics
    made = RunFolder.create(folder, recipe)
    with made.locked():
        made.write_json("environment.json", {"python": "3.12.8", "torch": "2.6.0"})
        made.register_clients({client: {} for client in clients})
        made.save_initial({})
        lines = "".join(json.dumps(record) + "\n" for record in metrics).encode()
        (folder / "metrics.jsonl").write_bytes(lines)
        progress = Progress(round=0, metrics_bytes=len(lines))
        made.roll_back(progress)
        made.write_text("summary.json", json.dumps(summary or summary_of(clients)))
        made._commit(progress)
    return folder
