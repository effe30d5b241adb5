"""Golden numbers: the first FedSA rounds against a plain PyTorch computation, and aggregations worked out by hand."""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F

from fedsa.algorithms import make_algorithm
from fedsa.client.training.job import Job, local_batches
from fedsa.engines.simulator import simulate
from fedsa.federation import Federation
from fedsa.recipe import apply_overrides, dump_recipe, parse_recipe
from fedsa.server import Server
from fedsa.store import RunFolder
from fedsa.types import Factor, Key, Side, Update

pytestmark = pytest.mark.run

ROUNDS, STEPS, RANK, ALPHA = 2, 3, 2, 6
PEAK = {"adamw": 5e-3, "sgd": 0.02}
CLIP, WARMUP = 1.5, 0.25
SITES = {"north": 40, "south": 20, "west": 30}  # different sizes: weights matter


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of three sites of unequal size, as (text, label, site)."""
    path = tmp_path_factory.mktemp("golden") / "rows.csv"
    filler = ["the", "film", "was", "a", "product", "we", "saw"]
    lines = [
        (
            " ".join(
                filler[: 2 + number % 4] + [["awful", "dull"], ["great", "lovely"]][number % 3 == 0][number % 2 :][:1]
            ),
            "good" if number % 3 == 0 else "bad",
            site,
        )
        for site, count in SITES.items()
        for number in range(count)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "site"), *lines])
    return path, lines


# -- the plain computation: transformers' model, hooks, leaf tensors; nothing of fedsa ---------------------------------


class PlainLora:
    """A BERT whose query and value layers add s·B·A·x, and whose classifier uses a weight and a bias of its own."""

    def __init__(self, folder, scale: float) -> None:
        from transformers import AutoTokenizer, BertForSequenceClassification

        self.bert = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
        self.bert.requires_grad_(False)
        self.bert.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.scale = scale
        self.tensors: dict[str, torch.Tensor] = {}
        for name, module in self.bert.named_modules():
            if name.endswith((".query", ".value")):
                module.register_forward_hook(self._lora(name))
        self.bert.classifier.register_forward_hook(self._head)

    def _lora(self, name: str):
        def hook(module, inputs, output):
            a, b = self.tensors[f"{name}.A"], self.tensors[f"{name}.B"]
            return output + inputs[0] @ a.T @ b.T * self.scale

        return hook

    def _head(self, module, inputs, output):
        return inputs[0] @ self.tensors["classifier.weight"].T + self.tensors["classifier.bias"]

    def loss(self, tensors: dict[str, torch.Tensor], texts: list[str], labels: list[int]) -> torch.Tensor:
        self.tensors = tensors
        batch = self.tokenizer(texts, padding=True, return_tensors="pt")
        log_probabilities = F.log_softmax(self.bert(**batch).logits, dim=1)
        return -log_probabilities[torch.arange(len(labels)), labels].mean()


def warmup_then_linear(step: int) -> float:
    """Return the factor on the rate at a step of the whole run: up over a quarter of it, then down to zero."""
    done = step / (ROUNDS * STEPS)
    return done / WARMUP if done < WARMUP else 1 - (done - WARMUP) / (1 - WARMUP)


def clipped(leaves: list[torch.Tensor]) -> bool:
    """Scale gradients so that their common norm is at most CLIP; say whether that changed them."""
    norm = torch.sqrt(sum((leaf.grad**2).sum() for leaf in leaves))
    if norm > CLIP:
        for leaf in leaves:
            leaf.grad *= CLIP / (norm + 1e-6)
    return bool(norm > CLIP)


def plain_fedsa(model: PlainLora, initial, batches, lines, sizes, optimizer: str):
    """Return the averaged A's, every client's own tensors, and which steps were clipped."""
    clients = {client: {name: value.clone() for name, value in initial.items()} for client in sizes}
    clips: list[bool] = []
    for round in range(ROUNDS):
        for client, tensors in clients.items():
            leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
            make = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
            optimise = make(leaves.values(), lr=PEAK[optimizer], weight_decay=0.01)
            for step, numbers in enumerate(batches[client, round + 1]):
                for group in optimise.param_groups:
                    group["lr"] = PEAK[optimizer] * warmup_then_linear(round * STEPS + step)
                optimise.zero_grad()
                texts = [lines[number][0] for number in numbers]
                model.loss(leaves, texts, [["bad", "good"].index(lines[number][1]) for number in numbers]).backward()
                clips.append(clipped(list(leaves.values())))
                optimise.step()
            clients[client] = {name: leaf.detach() for name, leaf in leaves.items()}
        total = sum(sizes.values())
        mean = {
            name: sum(clients[client][name] * sizes[client] for client in sizes) / total
            for name in initial
            if name.endswith(".A")
        }
        trained = copy.deepcopy(clients)
        for tensors in clients.values():
            tensors.update({name: value.clone() for name, value in mean.items()})
    return mean, trained, clips


@pytest.mark.parametrize(("variant", "scale"), [("lora", ALPHA / RANK), ("rslora", ALPHA / RANK**0.5)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
def test_two_fedsa_rounds_are_the_plain_computation(
    trainer, optimizer, variant, scale, rows, tiny_model_without_dropout, tiny_data, tmp_path
):
    path, lines = rows
    recipe = parse_recipe(
        apply_overrides(
            {**tiny_data, "data": {"path": str(path), "partition": {"kind": "column", "column": "site"}}},
            [
                f"rounds={ROUNDS}",
                f"model.path='{tiny_model_without_dropout.as_posix()}'",
                f"adapter.variant={variant}",
                f"adapter.r={RANK}",
                f"adapter.lora_alpha={ALPHA}",
                "adapter.dropout=0.0",
                f"training.trainer={trainer}",
                f"training.optimizer={optimizer}",
                f"training.local_steps={STEPS}",
                f"training.learning_rate={PEAK[optimizer]}",
                "training.weight_decay=0.01",
                f"training.max_grad_norm={CLIP}",
                "training.schedule=linear",
                f"training.warmup_fraction={WARMUP}",
            ],
        )
    )
    federation = Federation.from_recipe(recipe)
    assert federation.recipe.training.cohort_size == {"sequential": 0, "cohort": len(SITES)}[trainer]
    with RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder:
        simulate(federation, folder)
        server, *_ = folder.server_states.load_server(ROUNDS)
        own = {client: folder.client_states.load_client(client, ROUNDS).tensors for client in SITES}

    train_rows = {client: federation.rows.partition.clients[client].train for client in SITES}
    batches = {
        (client, round): [
            step[0]
            for step in local_batches(
                Job(client, round, ROUNDS, recipe.seed, {}, (), (), {}, train_rows[client]),
                recipe.training,
                federation.encoded.lengths,
            )
        ]
        for client in SITES
        for round in range(1, ROUNDS + 1)
    }
    plain_name = {
        key: key.module if key.factor is Factor.HEAD else f"{key.module}.{key.factor.value}"
        for key in federation.model.initial
    }
    mean, trained, clips = plain_fedsa(
        PlainLora(tiny_model_without_dropout, scale),
        {plain_name[key]: value for key, value in federation.model.initial.items()},
        batches,
        lines,
        {client: len(numbers) for client, numbers in train_rows.items()},
        optimizer,
    )

    assert any(clips), "no gradient was clipped: lower CLIP"
    assert not all(clips), "every gradient was clipped: raise CLIP"
    assert len(mean) == 4
    for key, name in plain_name.items():
        if key.factor.side is Side.A:
            torch.testing.assert_close(server[key], mean[name], rtol=0, atol=1e-6)
            assert not torch.allclose(server[key], federation.model.initial[key], rtol=0, atol=1e-5)
        for client in SITES:
            torch.testing.assert_close(own[client][key], trained[client][name], rtol=0, atol=1e-6)
            assert not torch.allclose(own[client][key], federation.model.initial[key], rtol=0, atol=1e-5)


# -- by hand -----------------------------------------------------------------------------------------------------------

A, B, HEAD = Key("layer", Factor.A), Key("layer", Factor.B), Key("classifier.weight", Factor.HEAD)

INITIAL = {A: torch.tensor([[1.0, 0.0]]), B: torch.tensor([[0.0], [0.0]]), HEAD: torch.tensor([[0.0]])}

# Two clients after training, with 1 and 3 examples: weights 1/4 and 3/4.
SMALL = {A: torch.tensor([[1.0, 2.0]]), B: torch.tensor([[2.0], [4.0]]), HEAD: torch.tensor([[8.0]])}
LARGE = {A: torch.tensor([[3.0, 6.0]]), B: torch.tensor([[6.0], [0.0]]), HEAD: torch.tensor([[4.0]])}

# ¼·[1 2] + ¾·[3 6] = [2.5 5]
# ¼·[2 4]ᵀ + ¾·[6 0]ᵀ = [5 1]ᵀ
# ¼·8 + ¾·4 = 5
MEAN_A, MEAN_B, MEAN_HEAD = [[2.5, 5.0]], [[5.0], [1.0]], [[5.0]]


def aggregate_by(algorithm: str) -> tuple[dict[Key, list], dict[str, dict[Key, list]]]:
    """Return the server's tensors after one round, and what each client is sent before the next."""
    method = make_algorithm(algorithm, {})
    server = Server(method, method.init(INITIAL), ["small", "large"], seed=0)
    server.begin_round(1)
    server.end_round(
        1,
        (
            Update(client, 1, count, {key: value for key, value in state.items() if method.plan(key, 1).sent})
            for client, count, state in (("large", 3, LARGE), ("small", 1, SMALL))
        ),
    )
    payloads = {
        client: {key: value.tolist() for key, value in server.payload(client, 2).tensors.items()}
        for client in server.begin_round(2)
    }
    return {key: value.tolist() for key, value in server.state.tensors.items()}, payloads


@pytest.mark.parametrize(
    ("algorithm", "server", "sent"),
    [
        # A is averaged; B and the head stay, so the server still has their initial values.
        ("fedsa", {A: MEAN_A, B: [[0.0], [0.0]], HEAD: [[0.0]]}, {A}),
        # Everything is averaged, A and B separately.
        ("fedit", {A: MEAN_A, B: MEAN_B, HEAD: MEAN_HEAD}, {A, B, HEAD}),
        # A is frozen at its initial value; B and the head are averaged.
        ("ffa", {A: [[1.0, 0.0]], B: MEAN_B, HEAD: MEAN_HEAD}, {B, HEAD}),
        # Nothing is averaged.
        ("local", {A: [[1.0, 0.0]], B: [[0.0], [0.0]], HEAD: [[0.0]]}, set()),
    ],
)
def test_an_aggregation_by_hand(algorithm, server, sent):
    state, payloads = aggregate_by(algorithm)
    assert state == server
    for payload in payloads.values():
        assert payload == {key: server[key] for key in sent}


def test_what_averaging_a_and_b_separately_loses():
    """Σ pᵢBᵢAᵢ − (Σ pᵢBᵢ)(Σ pᵢAᵢ), the two sides worked out by hand."""
    state, _ = aggregate_by("fedit")
    # ¼·[2 4]ᵀ[1 2] + ¾·[6 0]ᵀ[3 6] = ¼·[[2 4] [4 8]] + ¾·[[18 36] [0 0]] = [[14 28] [1 2]]
    mean_of_products = (SMALL[B] @ SMALL[A] + 3 * LARGE[B] @ LARGE[A]) / 4
    assert mean_of_products.tolist() == [[14.0, 28.0], [1.0, 2.0]]
    # [5 1]ᵀ[2.5 5] = [[12.5 25] [2.5 5]]
    product_of_means = torch.tensor(state[B]) @ torch.tensor(state[A])
    assert product_of_means.tolist() == [[12.5, 25.0], [2.5, 5.0]]
    assert (mean_of_products - product_of_means).tolist() == [[1.5, 3.0], [-1.5, -3.0]]
