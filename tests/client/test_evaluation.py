import functools
import itertools
import json
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedsa.adapters.factors import VARIANTS
from fedsa.client import learner
from fedsa.client.evaluation import evaluate, majority_accuracy
from fedsa.engines.simulator import simulate
from fedsa.errors import TrainingError
from fedsa.federation import Federation
from fedsa.recipe import dump_recipe
from fedsa.seeds import derive_seed
from fedsa.server import sample_clients
from fedsa.statistics import Statistics, interval, summarize, summarize_clients
from fedsa.store import RunFolder
from fedsa.types import Side

pytestmark = pytest.mark.run

LAW = settings(max_examples=50, deadline=None, database=None, derandomize=True)
METRICS = st.floats(0, 1, allow_nan=False)


# -- figures ----------------------------------------------------------------------------------------------------------


@given(clients=st.lists(st.tuples(METRICS, st.integers(1, 1000)), min_size=1, max_size=9), constant=METRICS)
@LAW
def test_figures_in_closed_form(clients, constant):
    values = {f"c{number}": value for number, (value, _) in enumerate(clients)}
    weights = {f"c{number}": weight for number, (_, weight) in enumerate(clients)}
    figures = summarize(values, weights)
    whole = math.fsum(value * weight for value, weight in clients) / sum(weights.values())
    assert figures.weighted_mean == pytest.approx(whole, abs=1e-12)
    assert figures.mean == pytest.approx(statistics.fmean(values.values()), abs=1e-12)
    assert figures.std == pytest.approx(statistics.pstdev(values.values()), abs=1e-9)
    assert figures.worst == min(values.values()) == values[figures.worst_client]
    assert summarize(dict(reversed(values.items())), weights) == figures
    same = summarize(dict.fromkeys(values, constant), weights)
    assert (same.mean, same.worst, same.worst_client) == (pytest.approx(constant), constant, "c0")
    assert same.std == pytest.approx(0, abs=1e-12)


def test_figures_by_hand():
    # weighted: (1·0 + 3·1) / 4 = 0.75; mean ½; deviations −½ and +½; a draw for the worst goes to the first id
    assert summarize({"b": 1.0, "a": 0.0}, {"a": 1, "b": 3}) == Statistics(0.75, 0.5, 0.5, 0.0, "a")
    assert summarize({"b": 1.0, "a": 1.0}, {"a": 1, "b": 3}).worst_client == "a"
    results = {"a": {"accuracy": 0.0, "loss": 9.0, "examples": 1}, "b": {"accuracy": 1.0, "loss": 1.0, "examples": 3}}
    assert summarize_clients(results, "loss").weighted_mean == 3.0


@given(rows=st.integers(1, 5000), part=METRICS, metric=st.sampled_from(["accuracy", "accuracy_norm", "exact_match"]))
@LAW
def test_the_interval_is_wilsons(rows, part, metric):
    right = round(part * rows)
    expected = binomtest(right, rows).proportion_ci(method="wilson")
    assert interval(right / rows, rows, metric) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval(right / rows, rows, "f1") is None
    assert interval(right / rows, 0, metric) is None


def test_no_clients_have_no_figures():
    with pytest.raises(ValueError, match=r"^no client was evaluated$"):
        summarize({}, {})


@pytest.mark.parametrize(
    ("train", "test", "accuracy"),
    [
        ([1, 1, 0], [1, 0, 0, 0], 0.25),
        ([0, 1], [0, 0, 1], 2 / 3),  # of equally frequent labels the lowest is guessed
        ([2], [0, 1], 0.0),
        ([0, 0, 1, 2, 2, 2], [2, 2], 1.0),
    ],
)
def test_majority_accuracy(train, test, accuracy):
    assert majority_accuracy(train, test) == pytest.approx(accuracy)
    assert majority_accuracy(np.array(train), np.array(test)) == pytest.approx(accuracy)


# -- one client's metrics ---------------------------------------------------------------------------------------------


def metrics_of(federation, clients, *, batch_size=64, **options):
    """Return each client's metrics by its id."""
    return dict(
        evaluate(federation.model, federation.task, federation.encoded, clients, batch_size=batch_size, **options)
    )


def test_batch_size_and_row_order_change_nothing(tiny_run):
    federation = tiny_run().federation
    rows = np.concatenate([parts.test for parts in federation.rows.partition.clients.values()])
    tensors = tiny_run().personal("site 0")

    def measure(order, batch_size):
        return metrics_of(federation, [("site 0", tensors, order)], batch_size=batch_size)["site 0"]

    whole = measure(rows, 1000)
    assert whole["examples"] == len(rows) == 36
    for order, batch_size in itertools.product(
        (rows, rows[::-1], np.random.default_rng(0).permutation(rows)), (1, 7, 36)
    ):
        measured = measure(order, batch_size)
        assert measured["accuracy"] == whole["accuracy"]
        assert measured["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    each = [measure(rows[number : number + 1], 1)["accuracy"] for number in range(len(rows))]
    assert sum(each) / len(each) == pytest.approx(whole["accuracy"])


def test_outputs_are_put_back_in_the_order_of_the_rows(tiny_run):
    """Rows are batched by length; each output must still meet its own label."""
    federation = tiny_run().federation

    class Lengths:
        """Rows of different lengths, whose number is their only token."""

        lengths = np.array([3, 1, 2, 1, 5, 4])
        labels = np.arange(6)

        def batch(self, rows):
            lengths = torch.as_tensor(self.lengths[rows])
            return {"rows": torch.as_tensor(np.asarray(rows)), "attention_mask": torch.arange(5) < lengths[:, None]}

    class Echo:
        """Says of each row its number, and scores how many came where they belong."""

        generates = False

        def questions(self, encoded, rows):
            return rows

        def outputs(self, model, batch):
            return batch["rows"][:, None].float()

        def score(self, encoded, rows, outputs):
            return {"accuracy": float((outputs[:, 0].numpy() == rows).mean())}

    for order in itertools.permutations(range(6), 4):
        clients = [("c", {}, np.array(order))]
        ((client, result),) = evaluate(federation.model, Echo(), Lengths(), clients, batch_size=3)
        assert client == "c"
        assert result == {"examples": 4, "accuracy": 1.0}
    for order in itertools.islice(itertools.permutations(range(6), 4), 0, None, 24):
        others = [(f"c{count}", federation.model.initial, np.array(order[:count])) for count in (1, 4, 2, 3)]
        for together, batch_size in ((2, 3), (3, 4), (4, 10)):
            options = {"batch_size": batch_size, "together": together}
            results = list(evaluate(federation.model, Echo(), Lengths(), others, **options))
            assert [client for client, _ in results] == ["c1", "c4", "c2", "c3"]
            assert all(result == {"examples": int(client[1]), "accuracy": 1.0} for client, result in results)


# -- many clients at once ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def different(tiny_recipe, tiny_model_without_dropout, tmp_path_factory):
    """Make a federation with rows of different lengths, and six clients with tensors and numbers of rows of their own.

    Two texts in five are of one word, so that packing saves rows.
    """

    @functools.cache
    def make(variant: str):
        path = tmp_path_factory.mktemp("different") / "rows.jsonl"
        rng = np.random.default_rng(0)
        words = ["the", "film", "was", "great", "awful", "lovely", "sad"]
        texts = [" ".join(rng.choice(words, rng.choice([1, 1, 4, 9, 12]))) for _ in range(60)]
        lines = ({"text": text, "label": "ab"[n % 2], "site": "xyz"[n % 3]} for n, text in enumerate(texts))
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        federation = Federation.from_recipe(
            tiny_recipe(
                f"model.path='{tiny_model_without_dropout.as_posix()}'",  # its larger weights let the adapter matter
                f"data.path='{path.as_posix()}'",
                f"adapter.variant={variant}",
                "algorithm=fedit",
            )
        )
        generator = torch.Generator().manual_seed(0)
        clients = [
            (
                f"c{number}",
                {
                    key: value + 0.5 * torch.randn(value.shape, generator=generator)
                    for key, value in federation.model.initial.items()
                },
                rng.permutation(60)[:count],
            )
            for number, count in enumerate((1, 60, 7, 30, 2, 13))
        ]
        return federation, clients

    return make


@pytest.mark.run
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_size", [5, 64])
def test_clients_together_have_the_metrics_of_each_alone(different, variant, batch_size):
    federation, clients = different(variant)
    alone = metrics_of(federation, clients, batch_size=batch_size)
    assert [alone[client]["examples"] for client, _, _ in clients] == [1, 60, 7, 30, 2, 13]
    adapter = {key: value for key, value in clients[0][1].items() if key.factor.side is not Side.HEAD}
    wrong = metrics_of(federation, [(client, {**tensors, **adapter}, rows) for client, tensors, rows in clients])
    assert all(abs(alone[f"c{n}"]["loss"] - wrong[f"c{n}"]["loss"]) > 1e-3 for n in range(1, 6)), "whose matters"
    for together, pack in itertools.product((1, 2, 3, 6), (False, True)):
        measured = metrics_of(federation, clients, batch_size=batch_size, together=together, pack=pack)
        assert list(measured) == list(alone)
        for client, metrics in measured.items():
            assert (metrics["accuracy"], metrics["examples"]) == (alone[client]["accuracy"], alone[client]["examples"])
            assert metrics["loss"] == pytest.approx(alone[client]["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("together", "taken"),
    [(0, [1, 2, 3, 4, 5, 6]), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 2, 4, 4, 6, 6]), (4, [4, 4, 4, 4, 6, 6]), (9, [6] * 6)],
)
def test_clients_are_consumed_as_they_are_needed(different, together, taken):
    federation, clients = different("lora")
    asked = []

    def ask():
        for client in clients:
            asked.append(client[0])
            yield client

    measured = evaluate(federation.model, federation.task, federation.encoded, ask(), batch_size=64, together=together)
    assert not asked
    assert [len(asked) for _ in measured] == taken


def test_nobody_to_evaluate(different):
    federation, _ = different("lora")
    assert metrics_of(federation, []) == metrics_of(federation, [], together=3) == {}


def test_evaluating_together_leaves_the_models_own_adapter_alone(different):
    federation, clients = different("lora")
    federation.model.write(clients[0][1])
    modules = dict(federation.model.model.named_modules())
    metrics_of(federation, clients, together=3, pack=True)
    assert all(torch.equal(value, clients[0][1][key]) for key, value in federation.model.read(clients[0][1]).items())
    assert dict(federation.model.model.named_modules()) == modules
    assert not federation.model.model.training


# -- the chosen round -------------------------------------------------------------------------------------------------


def split_of(federation, rows) -> str:
    return next(
        split
        for parts in federation.rows.partition.clients.values()
        for split in ("train", "validation", "test")
        if np.array_equal(getattr(parts, split), rows)
    )


@pytest.fixture
def run_scripted(tiny_recipe, tmp_path, monkeypatch):
    """Run four rounds in which validation accuracy is scripted by round, and test accuracy is its opposite.

    A round's accuracy may be a list, one for each client; ``examples`` are then clients' numbers of rows.
    """

    def run(validation: dict[int, float | list[float]], *overrides: str, examples: dict[str, int] | None = None):
        federation = Federation.from_recipe(tiny_recipe("rounds=4", *overrides))
        splits: list[str] = []
        rounds = iter(round for round in validation for _ in federation.clients)
        accuracy = itertools.count()

        def scripted(model, task, encoded, clients, **options):
            for client, _, rows in clients:
                splits.append(split_of(federation, rows))
                is_validation = splits[-1] == "validation"
                score = validation[next(rounds)] if is_validation else 1.0 / (1 + next(accuracy))
                if isinstance(score, list):
                    score = score[federation.clients.index(client)]
                yield client, {"examples": (examples or {}).get(client, len(rows)), "accuracy": score, "loss": 0.0}

        with monkeypatch.context() as patch:
            patch.setattr(learner, "evaluate", scripted)
            with RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder:
                return simulate(federation, folder), splits

    return run


@pytest.mark.parametrize(
    ("validation", "chosen"),
    [
        ({0: 0.5, 1: 0.6, 2: 0.9, 3: 0.7, 4: 0.8}, 2),
        ({0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.9}, 4),
        ({0: 0.9, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.8}, 0),
        ({0: 0.1, 1: 0.8, 2: 0.8, 3: 0.8, 4: 0.7}, 1),  # of equals, the first
    ],
)
def test_the_round_is_chosen_on_validation(run_scripted, validation, chosen):
    summary, splits = run_scripted(validation)
    assert summary["chosen_round"] == summary["test"]["round"] == chosen
    assert summary["test_final"]["round"] == 4
    assert summary["chosen_by"] == "weighted mean of validation accuracy"
    assert splits[:15] == ["validation"] * 15, "test rows are seen only when all rounds are over"
    assert set(splits[15:]) == {"test"}


def test_the_round_is_chosen_by_the_mean_that_is_weighted_by_rows(run_scripted):
    """Round 2 is the best for most rows, round 3 for most clients: (8·0.9 + 0 + 0)/10 > (8·0.5 + 1 + 1)/10."""
    rounds = {0: 0.1, 1: 0.2, 2: [0.9, 0.0, 0.0], 3: [0.5, 1.0, 1.0], 4: 0.3}
    summary, _ = run_scripted(rounds, examples={"site 0": 8, "site 1": 1, "site 2": 1})
    assert (summary["chosen_round"], summary["chosen_score"]) == (2, pytest.approx(0.72))


def test_evaluate_every_skips_rounds_but_not_the_last(run_scripted, tmp_path):
    summary, _ = run_scripted({0: 0.1, 3: 0.9, 4: 0.5}, "evaluation.evaluate_every=3")
    assert summary["chosen_round"] == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [round for round in range(5) for _ in range(3)]
    assert {line["round"] for line in lines if "validation" in line} == {0, 3, 4}
    assert {line["round"] for line in lines if line["train"]} == {1, 2, 3, 4}


def test_only_who_trained_or_was_evaluated_has_a_line(tiny_run):
    run = tiny_run("rounds=4", "fraction_train=0.4", "evaluation.evaluate_every=3")
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    for round in range(5):
        here = [line for line in lines if line["round"] == round]
        trained = [line["client"] for line in here if line["train"]]
        assert len(trained) == (0 if round == 0 else 1)
        evaluated = [line["client"] for line in here if "validation" in line]
        assert evaluated == (list(run.federation.clients) if round in (0, 3, 4) else [])
        assert [line["client"] for line in here] == sorted({*trained, *evaluated})
    assert all(line["train"] or line["upload_bytes"] == line["download_bytes"] == 0 for line in lines)


def test_a_part_of_the_clients_is_evaluated_anew_each_round(tiny_run):
    run = tiny_run("rounds=6", "evaluation.fraction_evaluate=0.67")
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    drawn = {
        round: [line["client"] for line in lines if line["round"] == round and "validation" in line]
        for round in range(7)
    }
    assert {len(clients) for clients in drawn.values()} == {2}
    assert len({tuple(clients) for clients in drawn.values()}) > 1
    assert {client for clients in drawn.values() for client in clients} == set(run.federation.clients)
    trainers = [sample_clients(run.federation.clients, 0.67, derive_seed(0, "clients", round)) for round in drawn]
    assert trainers != [tuple(clients) for clients in drawn.values()], "a draw of its own, not that of who trains"
    assert all(line["train"] for line in lines if line["round"]), "whoever trained has a line, evaluated or not"
    # The round is chosen by the mean over those that were evaluated; of equals, the first.
    means = {
        round: np.average(
            [line["validation"]["accuracy"] for line in lines if line["round"] == round and "validation" in line],
            weights=[
                line["validation"]["examples"] for line in lines if line["round"] == round and "validation" in line
            ],
        )
        for round in drawn
    }
    assert run.summary["chosen_round"] == max(means, key=means.get)
    assert run.summary["chosen_score"] == pytest.approx(max(means.values()))
    assert all("test" in client and "test_final" in client for client in run.summary["per_client"].values())
    everyone = tiny_run("rounds=6")
    assert everyone.summary["test_final"] == run.summary["test_final"], "who is evaluated changes no training"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told(tiny_recipe, tmp_path, monkeypatch, value):
    federation = Federation.from_recipe(tiny_recipe("rounds=2"))
    calls = itertools.count()

    def broken(model, task, encoded, clients, **options):  # three clients in round 0, then client 1 of round 1
        for client, _, rows in clients:
            yield client, {"examples": len(rows), "accuracy": 0.5, "loss": value if next(calls) == 4 else 1.0}

    monkeypatch.setattr(learner, "evaluate", broken)
    with RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder:
        expected = (
            r"^client 'site 1', round 1: the validation loss is not finite; "
            r"lower training\.learning_rate \(now 0\.01\)$"
        )
        with pytest.raises(TrainingError, match=expected):
            simulate(federation, folder)
        progress = folder.progress()
    assert progress is not None
    assert progress.round == 0, "the round before is safe"


@pytest.mark.parametrize("before", [0, 2])
def test_memory_that_runs_out_in_an_evaluation_is_told(tiny_recipe, tmp_path, monkeypatch, before):
    federation = Federation.from_recipe(tiny_recipe("rounds=1"))

    def out_of_memory(model, task, encoded, clients, **options):
        for client, _, rows in itertools.islice(clients, before):
            yield client, {"examples": len(rows), "accuracy": 0.5, "loss": 1.0}
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(learner, "evaluate", out_of_memory)
    expected = (
        rf"^round 0: out of memory on cpu in the evaluation on validation, after {before} clients; "
        r"lower evaluation\.batch_size or task\.max_length$"
    )
    with (
        RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder,
        pytest.raises(TrainingError, match=expected),
    ):
        simulate(federation, folder)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (["training.trainer=sequential", "evaluation.batch_size=7"], {"batch_size": 7, "together": 0, "pack": False}),
        (["training.cohort_size=2"], {"batch_size": 64, "together": 2, "pack": True}),
        (["training.cohort_size=3", "training.packing=false"], {"batch_size": 64, "together": 3, "pack": False}),
    ],
)
def test_clients_are_evaluated_as_they_are_trained(tiny_recipe, tmp_path, monkeypatch, settings, options):
    federation = Federation.from_recipe(tiny_recipe("rounds=1", *settings))
    seen = []

    def watched(*arguments, **given):
        seen.append(given)
        return evaluate(*arguments, **given)

    monkeypatch.setattr(learner, "evaluate", watched)
    with RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder:
        simulate(federation, folder)
    assert len(seen) >= 4  # validation after rounds 0 and 1, test before and after
    assert [given for given in seen if given != {**options, "mixing": None, "sampling": None}] == []


def test_opposite_test_labels_leave_the_chosen_round(tiny_run, tiny_recipe, tmp_path, monkeypatch):
    """With real training: turn every test result around, and the same round is chosen from the same validation."""
    plain = tiny_run("rounds=4")

    def turned(model, task, encoded, clients, **options):
        asked = list(clients)
        results = evaluate(model, task, encoded, asked, **options)
        for (_, _, rows), (client, result) in zip(asked, results, strict=True):
            is_test = split_of(federation, rows) == "test"
            yield client, {**result, "accuracy": 1 - result["accuracy"]} if is_test else result

    federation = Federation.from_recipe(tiny_recipe("rounds=4"))
    monkeypatch.setattr(learner, "evaluate", turned)
    with RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder:
        summary = simulate(federation, folder)
    assert summary["chosen_round"] == plain.summary["chosen_round"]
    assert summary["test"]["mean"] == pytest.approx(1 - plain.summary["test"]["mean"])

    def validation(path):
        return [json.loads(line)["validation"] for line in (path / "metrics.jsonl").read_text().splitlines()]

    assert validation(tmp_path / "run") == validation(plain.folder.path)


# -- which tensors are measured ---------------------------------------------------------------------------------------

EVALUATED = {
    "aggregate": ({"validation"}, {"test", "test_final"}),
    "training": ({"validation"}, {"test", "test_final", "test_after_aggregate", "test_final_after_aggregate"}),
    "both": (
        {"validation", "validation_after_training"},
        {"test", "test_final", "test_after_training", "test_final_after_training"},
    ),
}


@pytest.mark.parametrize("after", EVALUATED)
def test_every_figure_says_what_it_was_measured_after(tiny_run, after):
    run = tiny_run("algorithm=fedit", f"evaluation.evaluate_after={after}")
    in_lines, in_summary = EVALUATED[after]
    lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert all({name for name in line if name.startswith("validation")} == in_lines for line in lines)
    assert {name for name in run.summary if name.startswith("test")} == in_summary
    primary = "training" if after == "training" else "aggregate"
    assert run.summary["evaluated_after"] == primary
    for name in in_summary:
        assert run.summary[name]["after"] == (name.partition("_after_")[2] or primary)
        statistics = {"weighted_mean", "mean", "std", "worst", "worst_client", "untrained_clients", "untrained_mean"}
        assert set(run.summary[name]) == {"round", "after", *statistics}
        assert all(name in client for client in run.summary["per_client"].values())
    for name in in_lines:
        assert {line[name]["after"] for line in lines} == {name.partition("_after_")[2] or primary}


def test_what_is_exported_is_measured_whatever_rounds_are_chosen_by(tiny_run):
    training, aggregate = (
        tiny_run("algorithm=fedit", f"evaluation.evaluate_after={after}") for after in ("training", "aggregate")
    )
    assert training.summary["test_final_after_aggregate"] == aggregate.summary["test_final"]
    assert training.summary["test_after_aggregate"]["round"] == training.summary["chosen_round"]
    for client, about in training.summary["per_client"].items():
        assert about["test_final_after_aggregate"] == aggregate.summary["per_client"][client]["test_final"]


def test_both_ways_give_what_each_gives_alone(tiny_run):
    both, aggregate, training = (
        tiny_run("algorithm=fedit", f"evaluation.evaluate_after={after}") for after in ("both", "aggregate", "training")
    )
    assert both.summary["test_final"] == aggregate.summary["test_final"]
    assert both.summary["chosen_round"] == aggregate.summary["chosen_round"]
    assert {**both.summary["test_final_after_training"]} == training.summary["test_final"]

    def losses(run, name):
        lines = [json.loads(line) for line in (run.folder.path / "metrics.jsonl").read_text().splitlines()]
        return [line[name]["loss"] for line in lines if line["round"]]

    assert losses(both, "validation") == losses(aggregate, "validation")
    assert losses(both, "validation_after_training") == losses(training, "validation")
    assert losses(both, "validation") != losses(both, "validation_after_training")


def test_the_final_test_figures_are_those_of_the_personal_tensors(tiny_run):
    run = tiny_run()
    parts = run.federation.rows.partition.clients
    results = metrics_of(run.federation, [(client, run.personal(client), parts[client].test) for client in parts])
    for client, result in results.items():
        measured = run.summary["per_client"][client]["test_final"]
        assert measured.keys() == result.keys()
        assert (measured["accuracy"], measured["examples"]) == (result["accuracy"], result["examples"])
        assert measured["loss"] == pytest.approx(result["loss"], abs=1e-6)
    figures = summarize_clients(results, "accuracy")
    assert run.summary["test_final"]["weighted_mean"] == figures.weighted_mean
    assert run.summary["test_final"]["worst_client"] == figures.worst_client
