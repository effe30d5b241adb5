"""Tasks of decoders: what is in a batch, what is trained and asked, and that cohorts come to the same."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForCausalLM

from fedsa.callbacks import Callback
from fedsa.engines.simulator import simulate
from fedsa.errors import DataError, ModelError
from fedsa.federation import Federation
from fedsa.models.layout import Layout
from fedsa.recipe import dump_recipe, parse_recipe
from fedsa.runs.export import export
from fedsa.store import RunFolder
from fedsa.tasks.generation import Generation
from fedsa.tasks.sequences import IGNORED
from fedsa.tasks.text_metrics import extract, squad_exact_match, squad_f1
from support.federations import check_training, figures_of_all, jobs_of
from support.tiny_decoder import write_decoder, write_sums

pytestmark = pytest.mark.run

GENERATION = {"kind": "generation", "prompt": "{question}", "answer": "{answer}"}
TASKS = {
    "likelihood": GENERATION,
    "chat": {**GENERATION, "chat": True},
    "written": {**GENERATION, "metric": "exact_match", "extract": "gsm8k_strict", "max_new_tokens": 6},
    "columns": {
        "kind": "multiple_choice",
        "prompt": "{question}",
        "choices": ["first", "second"],
        "answer": "right",
        "first_choice": 1,
    },
    "labelled": {"kind": "multiple_choice", "prompt": "{question}", "choices": ["both"], "answer": "letter"},
    "same for all": {
        "kind": "multiple_choice",
        "prompt": "{question} {first} {second}",
        "labels": ["red", "blue"],
        "answer": "is_second",
        "choice_template": "the correct answer is {choice}",
    },
    "language": {"kind": "language_modeling", "text_columns": ["question"]},
    "conversation": {"kind": "chat"},  # of the columns question and answer
    "preference": {"kind": "dpo", "prompt": "question", "chosen": "first", "rejected": "second"},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    return write_decoder(folder / "model"), write_sums(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def recipe(places):
    model, rows = places

    def make(task, **changes):
        return parse_recipe(
            {
                "rounds": 2,
                "model": {"path": str(model), "attn_implementation": "sdpa"},
                "adapter": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
                "task": task,
                "data": {"path": str(rows), "partition": {"kind": "column", "column": "site"}},
                "training": {"local_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
                "compute": {"device": "cpu", "threads": 1, "precision": "fp32"},
                **changes,
            }
        )

    return make


def test_a_task_without_a_head_has_none_to_warm_up(recipe):
    chosen = {"local_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "head_warmup_epochs": 2}
    with pytest.raises(
        ModelError, match=r"training\.head_warmup_epochs = 2 does not go with task\.kind = 'generation'"
    ):
        Federation.from_recipe(
            recipe(next(task for task in TASKS.values() if task["kind"] == "generation"), training=chosen)
        )


@pytest.mark.run
@pytest.mark.parametrize("name", TASKS)
def test_a_cohort_comes_to_what_one_at_a_time_comes_to(recipe, name):
    federation = Federation.from_recipe(recipe(TASKS[name]))
    assert federation.recipe.training.trainer == "cohort"
    assert federation.recipe.training.packing is (federation.task.metric != "accuracy" and name != "language")
    check_training(federation)


@pytest.mark.parametrize("name", TASKS)
def test_clients_together_have_the_figures_that_each_has_alone(recipe, name):
    federation = Federation.from_recipe(recipe(TASKS[name]))
    figures_of_all(federation, pack=True)


def test_the_loss_is_that_of_the_answers_tokens_given_all_before(recipe):
    """Against the model's whole logits, row by row, without padding."""
    federation = Federation.from_recipe(recipe(GENERATION))
    encoded, model = federation.encoded, federation.model
    rows = np.array([0, 1, 2, 5])
    batch = encoded.batch(rows)
    model.streams.begin(Layout(batch["attention_mask"], [len(rows)]))
    sums, counts = federation.task.losses(model.model, batch)
    base, tokenizer = model.model.get_base_model(), federation.tokenizer
    for row, total, count in zip(rows, sums.detach(), counts, strict=True):
        cell = federation.rows.table[int(row)]
        prompt = tokenizer(cell["question"])["input_ids"]
        answer = [*tokenizer(cell["answer"])["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *answer]])
        model.streams.begin(Layout(torch.ones_like(ids), [1]))
        logits = base(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        expected = F.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        assert int(count) == len(answer)
        assert float(total) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_what_is_written_is_what_the_model_writes_alone(recipe):
    federation = Federation.from_recipe(recipe(TASKS["written"]))
    job = jobs_of(federation)[0]
    federation.model.write(job.tensors)
    rows, task = job.rows[:5], federation.task
    batch = federation.encoded.batch(task.prompts(federation.encoded, rows))
    assert batch["labels"].shape == (5, 0)
    with federation.model.evaluating():
        federation.model.streams.begin(Layout(batch["attention_mask"], [5]))
        written = task.generate(federation.model.model, batch)
        base = federation.model.model.get_base_model()
        for row, found in zip(rows, written, strict=True):
            ids = federation.tokenizer(federation.rows.table[int(row)]["question"])["input_ids"]
            start = len(ids)
            while len(ids) < start + 6 and (len(ids) == start or ids[-1] != 3):
                given = torch.tensor([ids])
                federation.model.streams.begin(Layout(torch.ones_like(given), [1]))
                ids.append(int(base(input_ids=given).logits[0, -1].argmax()))
            assert found.tolist() == [*ids[start:], *[0] * (6 - len(ids) + start)]


@pytest.mark.parametrize("form", [list, lambda texts: {"text": texts, "answer_start": [0] * len(texts)}])
def test_of_several_answers_the_first_is_trained_and_the_best_counts(recipe, tmp_path, form):
    lines = [
        json.dumps(
            {"question": "what is 1 plus 1 ?", "answers": form(["it is 2", "2", "so"]), "site": f"s {number % 2}"}
        )
        for number in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    data = {"path": str(tmp_path / "rows.jsonl"), "partition": {"kind": "column", "column": "site"}}
    federation = Federation.from_recipe(
        recipe({**TASKS["written"], "answer": "{answers}", "extract": "none"}, data=data)
    )
    task, encoded, tokenizer = federation.task, federation.encoded, federation.tokenizer
    assert encoded.references[7] == ("it is 2", "2", "so")
    trained = encoded.batch([7])["labels"][0]
    assert tokenizer.decode(trained[trained != IGNORED], skip_special_tokens=True) == "it is 2"
    rows, said = np.array([3, 4, 5, 6]), ["2", "it is 2", "2 red", "blue"]
    ends = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in said]
    written = torch.tensor([[*ids, *[0] * (4 - len(ids))] for ids in ends])
    figures = task.score(encoded, rows, torch.zeros(4), written)
    assert figures["exact_match"] == pytest.approx(2 / 4)
    assert figures["f1"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)


def test_an_answer_that_is_cut_off_is_compared_whole(recipe):
    """Else no number would be found in either text, and they would be taken for equal."""
    federation = Federation.from_recipe(recipe({**TASKS["written"], "max_length": 8}))
    encoded, row = federation.encoded, 2
    assert encoded.references[row] == (federation.rows.table[row]["answer"],)
    figures = federation.task.score(encoded, np.array([row]), torch.zeros(1), torch.tensor([[3]]))
    assert figures["exact_match"] == 0


@pytest.mark.parametrize("wanted", [0, 1, 3, 5])
def test_texts_that_were_written_in_the_chosen_rounds_test_are_kept(recipe, tmp_path, monkeypatch, wanted):
    """What is kept is what the figures were made of, of the first clients' first test rows; or nothing is kept."""
    scored = {}
    score = Generation.score

    def seen(self, encoded, rows, outputs, generated=None):
        scored.setdefault(tuple(rows), []).append(generated)
        return score(self, encoded, rows, outputs, generated)

    monkeypatch.setattr(Generation, "score", seen)
    federation = Federation.from_recipe(recipe(TASKS["written"], evaluation={"samples": wanted}))
    with RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder:
        simulate(federation, folder)
        kept = folder.read_json("samples.json") if wanted else None
    assert (tmp_path / "run" / "samples.json").exists() == bool(wanted)
    if not wanted:
        return
    clients, encoded = federation.clients, federation.encoded
    assert [each["client"] for each in kept] == sorted(clients[place % len(clients)] for place in range(wanted))
    # Tests of a client: before, then the chosen and the last round.
    for client in clients:
        rows = federation.rows.partition.clients[client].test
        own = [each for each in kept if each["client"] == client]
        texts = encoded.tokenizer.batch_decode(scored[tuple(rows)][1])
        for row, each, text in zip(rows, own, texts, strict=False):
            assert each["prompt"] == federation.rows.table[int(row)]["question"]
            assert each["right"] == [federation.rows.table[int(row)]["answer"]]
            words = re.sub("<(pad|unk|s)>", "", text.partition("</s>")[0]).split()
            assert each["written"] == " ".join(words)


SHOWN = {
    "likelihood": {**GENERATION, "max_new_tokens": 5},
    "all that fits": {**GENERATION, "max_new_tokens": 100},  # the model takes 64 tokens
    "chat": {**GENERATION, "chat": True, "max_new_tokens": 5},
    "language": TASKS["language"],
}


@pytest.mark.run
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("likelihood", {"cohort_size": 1}),
        ("likelihood", {"trainer": "sequential"}),
        *((name, {"cohort_size": 2}) for name in SHOWN),
    ],
)
def test_rows_are_shown_with_what_the_exported_model_writes_on_them(recipe, tmp_path, name, changes):
    """Where the figures are of the likelihood: the same without samples. PEFT and transformers are the judge."""
    training = {"local_steps": 3, "batch_size": 4, "learning_rate": 1e-1, **changes}
    kept, figures = {}, {}
    for wanted in (0, 5):
        federation = Federation.from_recipe(
            recipe(SHOWN[name], evaluation={"samples": wanted}, training=training, rounds=3)
        )
        run = tmp_path / str(wanted)
        with RunFolder.create(run, dump_recipe(federation.recipe)).locked() as folder:
            summary = simulate(federation, folder)
            kept[wanted] = folder.read_json("samples.json") if folder.has("samples.json") else None
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        for line in lines:
            (line["train"] or {}).pop("seconds", None)
        figures[wanted] = lines, {name: value for name, value in summary.items() if not re.search("second|rss", name)}
    assert kept[0] is None
    assert figures[0] == figures[5]
    clients = federation.clients
    assert [each["client"] for each in kept[5]] == sorted(clients[place % 2] for place in range(5))
    written = set()
    for client, folder in zip(clients, export(tmp_path / "5", tmp_path / "adapters"), strict=True):
        model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = federation.tokenizer
        own = [each for each in kept[5] if each["client"] == client]
        for row, each in zip(federation.rows.partition.clients[client].test, own, strict=False):
            cell = federation.rows.table[int(row)]
            if name == "language":
                ids = [2, *tokenizer(cell["question"])["input_ids"], 3]
                ids, rest = ids[: len(ids) // 2], ids[len(ids) // 2 :]
                right = tokenizer.decode(rest, skip_special_tokens=True)
            else:
                ids, right = tokenizer(cell["question"])["input_ids"], cell["answer"]
            if name == "chat":
                ids = [4, *ids, 3, 5]
            most = {"language": 32, "all that fits": 64 - len(ids)}.get(name, 5)
            said = model.generate(
                input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=most, eos_token_id=3, pad_token_id=0
            )[0, len(ids) :].tolist()
            text = tokenizer.decode(said[: said.index(3)] if 3 in said else said, skip_special_tokens=True)
            assert each["written"] == text.strip()
            assert each["prompt"] == tokenizer.decode(ids, skip_special_tokens=True)
            # Of what is right, no more tokens are shown than the model may write.
            assert each["right"] == [tokenizer.decode(tokenizer(right)["input_ids"][:most])]
            written.add(text)
    assert len(written) > 1
    assert max(len(text.split()) for text in written) <= 64


@pytest.mark.run
def test_an_interrupted_test_shows_the_same_rows_when_it_is_repeated(recipe, tmp_path):
    class Stop(Callback):
        def on_client_evaluated(self, round, split, client, metrics):
            if split == "test" and round == 2 and client == "site 1":
                raise KeyboardInterrupt

    given = recipe(SHOWN["likelihood"], training={"local_steps": 3, "batch_size": 4, "learning_rate": 1e-1})
    federation = Federation.from_recipe(given)
    contents = []
    for stops in ([], [Stop()]):
        run = tmp_path / str(len(stops))
        with RunFolder.create(run, dump_recipe(federation.recipe)).locked() as folder:
            if stops:
                with pytest.raises(KeyboardInterrupt):
                    simulate(federation, folder, stops)
                assert (run / "samples.json").exists()  # it is left from the interrupted test
        with RunFolder.open(run, write=True).locked() as folder:
            simulate(Federation.from_recipe(given), folder)
        contents.append(folder.read_json("samples.json"))
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3


def test_where_the_model_cannot_write_nothing_is_shown(recipe, monkeypatch):
    for name in ("likelihood", "language"):
        federation = Federation.from_recipe(recipe(TASKS[name]))
        task, encoded = federation.task, federation.encoded
        assert task.sampling(encoded) is not None
        base = federation.model.model.get_base_model()
        monkeypatch.setattr(type(base), "can_generate", lambda self: False)
        assert task.fitted(base, federation.tokenizer).sampling(encoded) is None
        monkeypatch.undo()
    for name in ("columns", "labelled"):
        federation = Federation.from_recipe(recipe(TASKS[name]))
        assert federation.task.sampling(federation.encoded) is None


def test_a_batch_stands_at_the_right_with_the_answers_last(recipe):
    federation = Federation.from_recipe(recipe(GENERATION))
    encoded = federation.encoded
    batch = encoded.batch([0, 2])  # answers of 2 and 8 words and the end
    assert batch["labels"].shape == (2, 9)
    assert (batch["labels"][0] != IGNORED).tolist() == [False] * 6 + [True] * 3
    assert batch["labels"][0, -3:].tolist() == batch["input_ids"][0, -3:].tolist()
    assert batch["input_ids"][:, -1].tolist() == [3, 3]
    for mask, positions in zip(batch["attention_mask"], batch["position_ids"], strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * length
        assert positions[-length:].tolist() == list(range(length))


def test_a_long_row_loses_the_middle_of_its_prompt_first(recipe):
    whole = Federation.from_recipe(recipe(GENERATION)).encoded
    short = Federation.from_recipe(recipe({**GENERATION, "max_length": 10})).encoded
    shorter = Federation.from_recipe(recipe({**GENERATION, "max_length": 5})).encoded
    tokens = [encoded.tokens[encoded.offsets[2] : encoded.offsets[3]] for encoded in (whole, short, shorter)]
    assert [len(each) for each in tokens] == [15, 10, 5]
    assert tokens[1].tolist() == [tokens[0][0], *tokens[0][-9:]]
    assert tokens[2].tolist() == [*tokens[0][:1], *tokens[0][6:10]]  # one token of the prompt, four of the answer
    assert [int(encoded.answers[2]) for encoded in (whole, short, shorter)] == [9, 9, 4]


@pytest.mark.run
@pytest.mark.parametrize("name", TASKS)
def test_two_rounds_lower_the_loss_and_end_with_figures(recipe, name, tmp_path):
    federation = Federation.from_recipe(recipe(TASKS[name], training={"local_steps": 8, "learning_rate": 0.05}))
    with RunFolder.create(tmp_path / "run", dump_recipe(federation.recipe)).locked() as folder:
        summary = simulate(federation, folder)
    assert summary["metric"] == federation.task.metric
    for entry in summary["per_client"].values():
        assert "majority" not in entry
        assert math.isfinite(entry["test"]["loss"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    first, last = (np.mean([line["train"]["loss"] for line in lines if line["round"] == round]) for round in (1, 2))
    assert last < first
    assert not [entry for entry in summary["sharing_plan"] if entry["factor"] == "head"]


def test_every_choice_is_asked_and_the_likeliest_counts(recipe):
    task = Federation.from_recipe(recipe(TASKS["columns"]))
    encoded = task.encoded
    rows = np.array([4, 1])
    items = task.task.questions(encoded, rows)
    assert len(items) == 4
    right = [int(encoded.right[row]) for row in rows]
    losses = torch.tensor([1.0, 2.0, 5.0, 4.0])
    figures = task.task.score(encoded, rows, losses)
    assert figures["accuracy"] == np.mean([right[0] == 0, right[1] == 1])
    assert figures["loss"] == pytest.approx((losses[right[0]] + losses[2 + right[1]]) / 4)  # of two tokens each
    for row, want in zip(rows, right, strict=True):
        cell = task.rows.table[int(row)]
        assert [cell["first"], cell["second"]][want] == str(sum(map(int, cell["question"].split()[2:5:2])))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({**TASKS["columns"], "first_choice": 0}, "which is none of its 2 choices"),
        ({**TASKS["labelled"], "answer": "question"}, "correct the row, task.answer"),
        ({**GENERATION, "prompt": "{query}"}, "'query'"),
        ({**GENERATION, "answer": "{nothing}"}, r"row 0: column 'nothing' has no answer \(got \[\]\)"),
    ],
)
def test_rows_that_do_not_fit(recipe, task, message):
    with pytest.raises(DataError, match=message):
        Federation.from_recipe(recipe(task))


def test_numbers_are_taken_out_as_the_harness_does():
    answer = "She has 3 + 4 = <<3+4=7>>7 apples.\n#### 1,234.50"
    assert [extract(answer, how) for how in ("gsm8k_strict", "gsm8k_flexible")] == ["1234.50", "1234.50"]
    assert extract("#### -7.", "gsm8k_strict") == "-7"
    assert extract("It costs $18.", "gsm8k_flexible") == "18"
    assert extract("no idea", "gsm8k_flexible") == extract("no idea", "gsm8k_strict") == "[invalid]"
    assert extract("#### 7 or #### 8", "gsm8k_strict") == "7"
    assert extract("#### 7 or 8", "gsm8k_flexible") == "8"


@pytest.mark.parametrize(
    ("written", "wanted", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("in Paris, France", "Paris", 0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("a b a", "b b", 0, 2 * (1 / 1) * (1 / 2) / (1 + 1 / 2)),  # articles go: one word, of which the other has two
        ("x y x", "x x z", 0, 2 / 3),
        ("", "Paris", 0, 0),
    ],
)
def test_figures_of_written_text(written, wanted, exact, f1):
    assert squad_exact_match(written, wanted) == exact
    assert squad_f1(written, wanted) == pytest.approx(f1, abs=1e-9)
