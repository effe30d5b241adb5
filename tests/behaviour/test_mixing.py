"""Adapters weighed for each row at inference: against PEFT's own scaling set by hand, one row at a time."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig

from fedsa.adapters.factors import VARIANTS
from fedsa.algorithms import make_algorithm
from fedsa.client.evaluation import evaluate
from fedsa.errors import ModelError
from fedsa.federation import Federation
from fedsa.models import AdaptedModel, require_weighable
from fedsa.models.layout import Layout
from fedsa.runs.export import export
from support.tiny_models import bert

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def mixed(tiny_recipe, tiny_model_without_dropout, tmp_path_factory):
    """A federation whose clients' adapters matter, and rows of lengths that packing gains from."""
    path = tmp_path_factory.mktemp("mixed") / "rows.jsonl"
    rng = np.random.default_rng(0)
    words = ["the", "film", "was", "great", "awful", "lovely", "sad"]
    texts = [" ".join(rng.choice(words, rng.choice([1, 1, 4, 9, 12]))) for _ in range(60)]
    lines = ({"text": text, "label": "ab"[n % 2], "site": "xyz"[n % 3]} for n, text in enumerate(texts))
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    model = f"model.path='{tiny_model_without_dropout.as_posix()}'"
    federation = Federation.from_recipe(tiny_recipe(model, f"data.path='{path.as_posix()}'", "algorithm=feddpa"))
    generator = torch.Generator().manual_seed(0)
    clients = [
        (
            client,
            {
                key: value + 0.5 * torch.randn(value.shape, generator=generator)
                for key, value in federation.model.initial.items()
            },
            rng.permutation(60)[:count],
        )
        for client, count in zip("zxy", (20, 7, 13), strict=True)
    ]
    return federation, clients


def metrics(federation, clients, *, batch_size=64, mixing=True, **options):
    measured = evaluate(
        federation.model,
        federation.task,
        federation.encoded,
        clients,
        batch_size=batch_size,
        mixing=federation.mixing if mixing else None,
        **options,
    )
    return {client: result["loss"] for client, result in measured}


def plain_batch(federation, row):
    batch = federation.encoded.batch([row])
    length = int(batch["attention_mask"].sum())
    return {name: value[:, :length] if value.dim() > 1 else value for name, value in batch.items()}


def test_a_row_is_answered_with_the_weights_of_its_likeness(mixed):
    federation, clients = mixed
    model, algorithm = federation.model, federation.algorithm
    layers = [module for module in model.model.modules() if hasattr(module, "lora_A")]
    scaling = [dict(layer.scaling) for layer in layers]

    def told(row):
        """Return the mean of the last hidden state of the base, PEFT's adapters switched off."""
        inputs = {name: value for name, value in plain_batch(federation, row).items() if name != "labels"}
        with torch.no_grad(), model.model.disable_adapter():
            return model.model.base_model.model.bert(**inputs).last_hidden_state[0].mean(dim=0)

    seen = []
    for client, tensors, rows in clients:
        references = federation.mixing.references(client)
        assert len(set(references)) == 5
        assert set(references) <= set(federation.rows.partition.clients[client].train)
        for row in rows[:4]:
            cosine = np.mean([float(F.cosine_similarity(told(row), told(own), dim=0)) for own in references])
            alpha = 0.5 * max(cosine, 0)
            model.write(tensors)
            for layer, own in zip(layers, scaling, strict=True):
                layer.scaling = {"default": own["default"] * 2 * (1 - alpha), "local": own["local"] * 2 * alpha}
            batch = plain_batch(federation, row)
            with torch.no_grad():
                logits = model.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
            for layer, own in zip(layers, scaling, strict=True):
                layer.scaling = own
            expected = float(F.cross_entropy(logits, batch["labels"]))
            (got,) = metrics(federation, [(client, tensors, np.array([row]))]).values()
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)
            (equal,) = metrics(federation, [(client, tensors, np.array([row]))], mixing=False).values()
            seen.append((alpha, abs(got - equal)))
    assert max(alpha for alpha, _ in seen) - min(alpha for alpha, _ in seen) > 0.05, "rows differ in likeness"
    assert max(difference for _, difference in seen) > 0.01, "and the mix matters"
    assert algorithm.references == 5


def test_it_does_not_matter_which_rows_and_clients_go_together(mixed):
    federation, clients = mixed
    alone = metrics(federation, clients)
    for batch_size, together, pack in itertools.product((5, 64), (0, 1, 2, 3), (False, True)):
        got = metrics(federation, clients, batch_size=batch_size, together=together, pack=pack and together > 0)
        assert got == pytest.approx(alone, rel=1e-4, abs=1e-5)
    reordered = [(client, tensors, rows[::-1]) for client, tensors, rows in clients[::-1]]
    assert metrics(federation, reordered) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_equal_weights_are_the_plain_sum(mixed):
    """With λ = ½ and a row that is its own only reference, α = ½."""
    federation, clients = mixed
    client, tensors, _ = clients[0]
    row = federation.rows.partition.clients[client].train[:1]

    class Alike:
        algorithm = federation.algorithm

        def references(self, client):
            return row

    options = {"batch_size": 4}
    same = [
        dict(
            evaluate(federation.model, federation.task, federation.encoded, [(client, tensors, row)], **options, **how)
        )
        for how in ({"mixing": Alike()}, {})
    ]
    assert same[0][client]["loss"] == pytest.approx(same[1][client]["loss"], rel=1e-4, abs=1e-5)


def test_a_client_has_all_its_rows_as_references_where_they_are_few(mixed):
    federation, clients = mixed
    algorithm = make_algorithm("feddpa", {"instances": 1000})
    mixing = type(federation.mixing)(algorithm, federation.rows.partition.clients, 0)
    own = federation.rows.partition.clients["x"]
    assert sorted(mixing.references("x")) == sorted(own.train)
    nothing = type(federation.mixing)(algorithm, {"z": type(own)(own.train[:0], own.validation, own.test)}, 0)
    got = dict(
        evaluate(federation.model, federation.task, federation.encoded, clients[:1], batch_size=64, mixing=nothing)
    )
    assert got["z"]["loss"] == metrics(federation, clients[:1], mixing=False)["z"], "nothing to compare with"


def test_numbers_of_rows_are_spread_over_their_tokens():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    numbers = torch.tensor([2.0, 3.0, 5.0])
    layout = Layout(mask, [2, 1])
    assert layout.spread(numbers, torch.zeros(3, 7)).tolist() == [[2], [3], [5]]
    assert layout.spread(numbers, torch.zeros(3, 4, 7))[..., 0].tolist() == [[2, 2, 0, 0], [3, 0, 0, 0], [5, 5, 5, 0]]
    with pytest.raises(ModelError, match="not by rows or tokens"):
        Layout(mask, [3]).spread(numbers, torch.zeros(4, 3, 7))


def test_what_cannot_be_weighed_is_refused(mixed):
    method = make_algorithm("feddpa", {})
    reasons = {variant: method.refusal(variant) for variant in VARIANTS}
    assert [variant for variant, reason in reasons.items() if reason is None] == ["lora", "rslora"]
    assert reasons["pissa"] is not None
    assert reasons["pissa"].endswith("set algorithm_options.mixing = 'equal'")
    assert make_algorithm("feddpa", {"mixing": "equal"}).refusal("pissa") is None
    assert "mixing" not in (reasons["vera"] or "")
    config = LoraConfig(r=2, target_modules=["word_embeddings", "query"], task_type="SEQ_CLS")
    with pytest.raises(ModelError, match=r"bert\.embeddings\.word_embeddings is Embedding: leave it out"):
        require_weighable(AdaptedModel(bert(), config, seed=0, adapters=("default", "local")).model)


def test_a_card_says_what_was_measured(tiny_run, tmp_path):
    for mixing, said in (("instance", True), ("equal", False)):
        run = tiny_run("algorithm=feddpa", f"algorithm_options.mixing={mixing}", "rounds=1")
        (folder,) = export(run.folder.path, tmp_path / mixing, clients=["site 0"])
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert ("weighed for each row by its similarity to 5 training rows" in card) is said
