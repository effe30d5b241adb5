"""What holds on a processor holds on a CUDA device; skipped where there is none."""

import pytest
import torch

from support.cohorts import TWENTY, both, jobs_of, largest_difference, moved
from support.tiny_models import BASES, FITTING, VARIANTS, adapt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def on_cuda(name, variant, dtype=torch.float64):
    attention = "sdpa" if name in ("llama", "modernbert") else "eager"
    return adapt(BASES[name], variant, attention=attention, dropout=0.1, dtype=dtype, method={"device": "cuda"})


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("name", "variant"), FITTING)
def test_a_cohort_is_one_client_at_a_time_in_float64(name, variant, pack):
    model = on_cuda(name, variant)
    jobs = jobs_of(model)
    alone, together = both(model, jobs, TWENTY, pack=pack)
    assert moved(jobs, alone) > 1e-3
    assert largest_difference(alone, together) <= 1e-10


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cohort_is_one_client_at_a_time_in_fp32(variant):
    model = on_cuda("bert", variant, torch.float32)
    alone, together = both(model, jobs_of(model), TWENTY, pack=True)
    assert largest_difference(alone, together) <= 1e-5


@pytest.mark.parametrize("algorithm", ["fedsa", "feddpa", "fedalt", "fedex"])
def test_a_run_learns_what_a_processor_learns(tiny_run, tiny_model_without_dropout, algorithm):
    settings = [
        f"algorithm={algorithm}",
        f"model.path={tiny_model_without_dropout}",
        "adapter.dropout=0.0",
        "training.optimizer=sgd",  # AdamW's first steps are of signs: they turn rounding into whole steps
        "training.learning_rate=0.1",
    ]
    here = tiny_run(*settings)
    there = tiny_run(*settings, "compute.device=cuda")
    assert there.federation.model.device == "cuda"
    for client in here.federation.clients:
        ours, theirs = here.personal(client), there.personal(client)
        assert ours.keys() == theirs.keys()
        assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) <= 1e-4


def test_a_run_in_bf16_follows_one_in_fp32_within_its_precision(tiny_run):
    losses = {}
    for precision in ("fp32", "bf16"):
        run = tiny_run("compute.device=cuda", f"compute.precision={precision}")
        losses[precision] = [figures["test"]["loss"] for figures in run.summary["per_client"].values()]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]
