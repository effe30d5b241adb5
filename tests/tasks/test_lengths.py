"""What the model does not see of a row is said: what is cut, in every kind of task, and what no tokenizer knows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from fedsa.errors import DataError
from fedsa.tasks.classification import Classification
from fedsa.tasks.generation import Generation, LanguageModeling
from fedsa.tasks.multiple_choice import MultipleChoice
from fedsa.tasks.question_answering import QuestionAnswering
from fedsa.tasks.regression import Regression
from fedsa.tasks.tagging import TokenClassification
from fedsa.types import CLASS_NUMBER
from support.tiny_words import decoder_words, encoder_words

LONG = "the film was good " * 15  # 60 words
MANY = ("a b c d " * 15).strip()


def table(rows):
    made = Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]})
    return made.add_column(CLASS_NUMBER, [0] * len(rows))


def encode(task, rows, *, limit=512, tokenizer=None, used=None):
    decodes = isinstance(task, Generation | LanguageModeling | MultipleChoice)
    plain = tokenizer or (decoder_words() if decodes else encoder_words())
    return task.encode(table(rows), np.arange(len(rows)) if used is None else used, plain, limit=limit)


def squad(context, answer):
    return {"q": "what", "c": context, "a": {"text": [answer], "answer_start": [context.rindex(answer)]}}


CUT = {
    # task; a short row and a long one; how many tokens the long one has; what is lost
    "one text": (
        Classification(("t",), ("a", "b"), 16), {"t": "good"}, {"t": LONG}, 62, "what is beyond is not read"
    ),
    "pair": (
        Classification(("t", "u"), ("a", "b"), 16), {"t": "good", "u": "bad"}, {"t": LONG, "u": MANY}, 123,
        "what is beyond is not read"
    ),
    "regression": (
        Regression(("t",), "n", 16), {"t": "good", "n": 1.0}, {"t": LONG, "n": 2.0}, 62, "what is beyond is not read"
    ),
    "tags": (
        TokenClassification("t", "n", ("O", "B-X"), 16), {"t": ["good"], "n": [1]},
        {"t": LONG.split(), "n": [0] * 60}, 62, "the 46 words that are cut off are neither trained nor counted"
    ),
    "windows": (
        QuestionAnswering("q", "c", "a", 16), squad("so good", "good"), squad(LONG + "now", "now"), 65,
        "they are read in several windows"
    ),
    "prompt": (
        Generation("so {t} Answer:", "{u}", max_length=16), {"t": "good", "u": "bad"}, {"t": LONG, "u": "bad"}, 64,
        "1 lose the middle of the prompt"
    ),
    "prompt and answer": (
        Generation("so {t} Answer:", "{u}", max_length=16), {"t": "good", "u": "bad"}, {"t": LONG, "u": MANY}, 123,
        "1 lose the middle of the prompt, 1 lose all that is their own in it, 1 lose the end of the answer"
    ),
    "text": (LanguageModeling("t", 16), {"t": "good"}, {"t": LONG}, 62, "what is beyond is not read"),
    "choices": (
        MultipleChoice("so {t} Answer:", "n", ("c",), max_length=16), {"t": "good", "c": ["a", "b"], "n": 1},
        {"t": LONG, "c": ["a b", "c"], "n": 1}, 65, "1 lose the middle of the prompt"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_is_counted(name):
    task, short, long, length, lost = CUT[name]
    encoded = encode(task, [short, long, short, long], used=np.array([0, 1, 2]))  # a row that is not used has no part
    note = f"1 of 3 rows are longer than 16 tokens (longest {length}): {lost}; "
    assert encoded.notes == (f"{note}raise task.max_length (the model takes 512) to keep more.",)
    assert max(encoded.lengths) == 16
    assert encode(task, [short] * 3).notes == ()
    assert encode(task, [short, long, short], limit=16).notes == (f"{note}the model takes no more.",)


@pytest.mark.parametrize("length", [61, 62, 63])
def test_a_row_that_just_fits_is_not_counted(length):
    encoded = encode(Classification(("t",), ("a", "b"), length), [{"t": "good"}, {"t": LONG}])
    assert bool(encoded.notes) == (length < 62)


def words_of(encoded, item):
    whole = encoded.tokens[encoded.offsets[item] : encoded.offsets[item + 1]].tolist()
    return encoded.tokenizer.convert_ids_to_tokens(whole)


@pytest.mark.run
@pytest.mark.parametrize("longest", range(8, 40))
def test_the_templates_beginning_and_end_are_kept(longest):
    task = Generation("what is now {t} then {u} Answer:", "good bad", max_length=longest)
    rows = [{"t": MANY[: 8 * size], "u": MANY[: 4 * size]} for size in range(1, 12)]
    for item in range(len(rows)):
        words = words_of(encode(task, rows), item)
        assert len(words) <= longest
        assert words[:3] == ["what", "is", "now"]
        assert words[-4:] == ["Answer:", "good", "bad", "</s>"]
    if longest > 12:  # what is first in the first column, and last in the last one, is kept longest
        assert words[3] == "a"
        assert words[-5] in "abcd"


def test_a_prompt_without_columns_and_one_of_a_column_alone():
    assert encode(Generation("what is now", "{t}", max_length=6), [{"t": MANY}]).lengths.tolist() == [6]
    assert words_of(encode(Generation("{t}", "now", max_length=6), [{"t": "so " + MANY + " then"}]), 0) == [
        "so", "a", "d", "then", "now", "</s>"
    ]  # fmt: skip


def test_a_row_of_which_no_answer_is_left_is_refused():
    task = Generation("what is now {t} Answer:", "good", max_length=4)
    with pytest.raises(
        DataError, match=r"row 0: nothing of its answer is left.*takes 4 tokens of task\.max_length = 4"
    ):
        encode(task, [{"t": "film"}])


def test_choices_of_a_row_stand_behind_one_prompt():
    encoded = encode(MultipleChoice("{t}", "n", ("c",), max_length=10), [{"t": MANY, "c": ["so", "a b c d"], "n": 0}])
    trained, short, long = (words_of(encoded, item) for item in range(3))
    assert trained == short
    assert short[:-2] == long[:-5]
    assert len(long) == 10


def test_a_prompt_leaves_room_for_what_the_model_writes():
    task = Generation("so {t} Answer:", "good", metric="f1", max_length=64, max_new_tokens=20)
    encoded = encode(task, [{"t": MANY}, {"t": "a"}], limit=64)
    assert encoded.lengths.tolist() == [64, 5, 44, 3]
    assert words_of(encoded, 2)[-1] == "Answer:"
    assert encoded.notes[0].startswith("1 of 2 rows are longer than 44 tokens (longest 62), which is what a prompt may")
    with pytest.raises(DataError, match=r"task\.max_new_tokens = 63: lower task.max_new_tokens"):
        encode(Generation("so {t} Answer:", "good", metric="f1", max_new_tokens=63), [{"t": "a"}], limit=64)


UNKNOWN = {
    "one text": (Classification(("t",), ("a", "b")), {}),
    "regression": (Regression(("t",), "n"), {"n": 1.0}),
    "tags": (TokenClassification("t", "n", ("O", "B-X")), {"n": [0, 1]}),
    "windows": (QuestionAnswering("t", "c", "a"), {"c": "xx yy", "a": {"text": ["xx"], "answer_start": [0]}}),
    "prompt": (Generation("{t}", "xx"), {}),
    "text": (LanguageModeling("t"), {}),
    "choices": (MultipleChoice("{t}", "n", labels=("xx", "yy")), {"n": 0}),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_rows_that_the_tokenizer_does_not_know_are_counted_and_most_of_them_refused(name):
    task, rest = UNKNOWN[name]
    known = {**rest, **({"c": "so xx"} if "c" in rest else {}), "t": ["so", "good"] if name == "tags" else "so good"}
    if name == "choices":
        task = MultipleChoice("{t}", "n", labels=("xx", "so"))
    strange = {**rest, "t": ["xx", "yy"] if name == "tags" else "xx yy"}
    told = r"1 of 3 rows hold \(nearly\) nothing but tokens that the model's tokenizer does not know \(<unk>\)"
    if name not in ("choices",):
        notes = encode(task, [known, strange, known]).notes
        assert len(notes) == 1
        assert notes[0].startswith(told.replace("\\", ""))
    with pytest.raises(DataError, match=r"3 of 3 rows hold \(nearly\) nothing but tokens.*there is nothing to learn"):
        encode(UNKNOWN[name][0], [strange] * 3)


@pytest.mark.parametrize("task", [Classification(("t",), ("a", "b")), Generation("{t}", "{t}"), LanguageModeling("t")])
def test_rows_without_tokens(task):
    notes = encode(task, [{"t": "good"}, {"t": " "}, {"t": "bad"}]).notes
    assert any(note.startswith("1 of 3 rows have no token that the model could read") for note in notes)
    assert any("empty answer" in note for note in notes) == isinstance(task, Generation)
    with pytest.raises(DataError, match=r"3 of 3 rows have no token that the model could read"):
        encode(task, [{"t": ""}] * 3)


def test_a_row_without_any_token_is_refused():
    """A decoder's tokenizer adds none: the model would see padding alone, and say what is not finite."""
    with pytest.raises(DataError, match=r"row 1: the tokenizer makes no token of column 't' \(and so in 1 of 3 rows\)"):
        encode(Classification(("t",), ("a", "b")), [{"t": "a"}, {"t": ""}, {"t": "a"}], tokenizer=decoder_words())


@pytest.mark.parametrize("task", [Classification(("t",), ("a", "b")), Regression(("t",), "n")])
def test_an_end_token_within_a_text_is_read_as_a_blank_where_the_head_looks_for_it(task):
    rows = [{"t": "so good", "n": 1.0}, {"t": "so </s> good </s>", "n": 1.0}, {"t": "bad", "n": 2.0}]
    plain = encode(task, rows, tokenizer=encoder_words(eos=True))
    assert plain.notes == ()  # RoBERTa's head looks at the first token
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    encoded = encode(task.fitted(model, None), rows, tokenizer=encoder_words(eos=True))
    assert encoded.batch([0])["input_ids"].tolist() == encoded.batch([1])["input_ids"].tolist()
    assert [int((encoded.batch([row])["input_ids"] == 3).sum()) for row in range(3)] == [1, 1, 1]
    assert encoded.notes[0].startswith("1 text holds '</s>'")


def test_notes_are_kept_with_the_tokens_of_many_rows(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSA_CACHE", str(tmp_path))
    monkeypatch.setattr("fedsa.tasks.classification._CACHED_ROWS", 2)
    task, rows = Classification(("t",), ("a", "b"), 16), [{"t": "good"}, {"t": LONG}, {"t": "zz"}]
    first, second = encode(task, rows), encode(task, rows)
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    assert first.notes == second.notes
    assert len(first.notes) == 2
