"""Chat: what is learned of a conversation are the assistant's turns, all that is kept of them, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedsa.errors import DataError
from fedsa.tasks.chat import has_plain_template, with_template
from fedsa.tasks.conversations import Chat
from fedsa.tasks.generation import Generation
from fedsa.tasks.sequences import IGNORED, SequenceRows, answer_losses
from fedsa.types import CLASS_NUMBER
from support.chat_templates import LOOP, MARKS, ROLE, TEMPLATES
from support.tiny_decoder import write_decoder
from support.tiny_words import decoder_words

Turns = list[dict[str, Any]]


def talk(*said: str, system: str | None = None) -> Turns:
    """Return turns of a user and an assistant, one after the other."""
    turns = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(said)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def table(*conversations: Turns) -> Dataset:
    columns = {"messages": [json.dumps(turns) for turns in conversations], CLASS_NUMBER: [0] * len(conversations)}
    return Dataset.from_dict(columns)


def encode(
    tokenizer: PreTrainedTokenizerBase, *conversations: Turns, most: int = 64, limit: int = 64, **how: Any
) -> SequenceRows:
    return Chat(most, 4).encode(table(*conversations), np.arange(len(conversations)), tokenizer, limit=limit, **how)


def words(encoded: SequenceRows, item: int = 0) -> tuple[list[str], list[str]]:
    """Return all words of an item, and those that are learned."""
    own = slice(encoded.offsets[item], encoded.offsets[item + 1])
    assert encoded.asked_tokens is not None
    ids, asked = encoded.tokens[own], encoded.asked_tokens[own]
    whole, learned = (encoded.tokenizer.convert_ids_to_tokens(part.tolist()) for part in (ids, ids[asked]))
    return list(whole), list(learned)


@pytest.mark.parametrize("family", TEMPLATES)
def test_of_each_answer_is_learned_what_the_template_adds_for_it(family: str) -> None:
    template, said, _ = TEMPLATES[family]
    tokenizer = decoder_words(MARKS, template)
    turns = talk("what is the film", "good", "so then", "bad film now")
    whole, learned = words(encode(tokenizer, turns))
    parts = [said.replace("good film", answer).split() for answer in ("good", "bad film now")]
    rendered = tokenizer.tokenize(str(tokenizer.apply_chat_template(turns, tokenize=False)))
    if family == "without an end":  # only what ends the text can be told from what follows
        parts[0].remove("</s>")
        rendered.append("</s>")
    assert learned == [word for part in parts for word in part]
    assert whole == rendered


def test_one_exchange_is_learned_as_a_generation_with_chat_learns_it() -> None:
    tokenizer = decoder_words(MARKS, TEMPLATES["gemma"][0])
    rows = Dataset.from_dict({"q": ["what " * 30, "so"], "a": ["good film", "bad " * 40], CLASS_NUMBER: [0, 0]})
    generation = Generation("{q}", "{a}", chat=True, max_length=24).encode(rows, np.arange(2), tokenizer, limit=64)
    chat = encode(tokenizer, *(talk(row["q"], row["a"]) for row in rows), most=24)
    assert chat.tokens.tolist() == generation.tokens.tolist()
    assert chat.offsets.tolist() == generation.offsets.tolist()
    assert chat.terms.tolist() == generation.answers.tolist()
    for name, value in chat.batch([0, 1]).items():
        assert torch.equal(value, generation.batch([0, 1])[name]), name


THOUGHTFUL = (  # an answer has a thought in front while it is the last one
    f"{LOOP}<start> {ROLE} {{% if m['role'] == 'assistant' and loop.last %}}<think> </think> {{% endif %}}"
    "{{ m['content'] }} <end> {% endfor %}{% if add_generation_prompt %}<start> <model> {% endif %}"
)


def test_a_turn_that_is_rendered_otherwise_when_others_follow_is_learned_as_it_stands() -> None:
    tokenizer = decoder_words(MARKS, THOUGHTFUL)
    turns = talk("what is the film", "good", "so then", "bad film now")
    whole, learned = words(encode(tokenizer, turns))
    assert whole == str(tokenizer.apply_chat_template(turns, tokenize=False)).split()
    assert learned == ["good", "<end>", "<think>", "</think>", "bad", "film", "now", "<end>"]


def test_turns_that_are_not_to_be_learned_are_not() -> None:
    tokenizer = decoder_words(MARKS, TEMPLATES["chatml"][0])
    turns = talk("what", "good", "so", "bad", "then", "now")
    turns[1]["train"] = False
    whole, learned = words(encode(tokenizer, [*turns, {"role": "user", "content": "the film"}]))
    assert learned == ["bad", "<end>", "now", "<end>"]
    assert "good" in whole
    assert "the" not in whole  # what stands behind the last answer teaches nothing


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[-1]['content'] }}{% if add_generation_prompt %} <model>{% endif %}", "does not begin with the"),
        (
            f"{{% set messages = messages[-2:] %}}{LOOP}<start> {ROLE} {{{{ m['content'] }}}} <end> {{% endfor %}}"
            "{% if add_generation_prompt %}<start> <model> {% endif %}",
            "row 0: the tokenizer's chat template leaves out the assistant's turn 'good'",
        ),
        (
            f"{{% if messages | length > 3 %}}{{{{ raise_exception('too many') }}}}{{% endif %}}{LOOP}<start> {ROLE} "
            "{{ m['content'] }} <end> {% endfor %}{% if add_generation_prompt %}<start> <model> {% endif %}",
            r"row 0: .* does not take these turns \(user, assistant, user, assistant\): too many",
        ),
    ],
)
def test_a_template_that_does_not_go_is_refused(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(decoder_words(MARKS, template), talk("what", "good", "so", "bad"))


def test_a_tokenizer_without_a_template_gets_a_plain_one() -> None:
    tokenizer = decoder_words(extra=["User:", "Assistant:", "System:", "kind"])
    assert not has_plain_template(tokenizer)
    assert with_template(tokenizer) is tokenizer
    before = tokenizer.chat_template
    with_template(tokenizer)
    assert tokenizer.chat_template == before
    encoded = encode(tokenizer, talk("what is the film", "good", "so", "bad", system="kind"))
    whole, learned = words(encoded)
    expected = "System: kind User: what is the film Assistant: good </s> User: so Assistant: bad </s>"
    assert whole == expected.split()
    assert learned == ["good", "</s>", "bad", "</s>"]
    assert encoded.notes[0].startswith("The tokenizer has no chat template, so a plain one is used")
    front = encode(tokenizer, talk("what"), answered=False)
    assert words(front, 1)[0] == ["User:", "what", "Assistant:"]
    own = decoder_words(MARKS, TEMPLATES["chatml"][0])
    assert with_template(own).chat_template == TEMPLATES["chatml"][0]


def test_a_conversation_may_begin_with_the_assistant() -> None:
    bare = f"{LOOP}{{{{ m['content'] }}}} <end> {{% endfor %}}"
    for template, expected in ((TEMPLATES["chatml"][0], ["good", "film", "<end>"]), (bare, ["film", "<end>"])):
        whole, learned = words(encode(decoder_words(MARKS, template), talk("what", "good film")[1:]))
        assert learned == expected  # the first token of all has nothing in front that it could be predicted from
        assert whole[-len(learned) :] == learned


def test_a_blank_in_front_of_an_answer_is_the_templates() -> None:
    """The tokenizer makes one token of it and the answer's first word; a model that writes has it in front."""
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False)
    inner.train_from_iterator(["user: so what model: good film now"] * 20, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>", "unk_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'user: ' if m['role'] == 'user' else 'model: ' }}{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}model: {% endif %}"
    )
    encoded = encode(tokenizer, talk("so what", "good film"))
    assert encoded.asked_tokens is not None
    parts = [encoded.tokens[chosen].tolist() for chosen in (~encoded.asked_tokens, encoded.asked_tokens)]
    assert [tokenizer.decode(part) for part in parts] == ["user: so what</s>model: ", "good film</s>"]
    front = tokenizer.apply_chat_template(talk("so what"), tokenize=False, add_generation_prompt=True)
    assert parts[0] == tokenizer(front, add_special_tokens=False)["input_ids"]


def test_what_is_cut_is_counted() -> None:
    tokenizer = decoder_words(MARKS, TEMPLATES["chatml"][0])
    short, long = talk("what", "good"), talk("what", "good", "a b c d " * 3, "bad", "so", "now")
    deep = talk("a b c d " * 6, "good film", "so", "now")
    encoded = encode(tokenizer, short, long, deep, most=16)
    assert words(encoded, 1)[1] == ["good", "<end>"]
    whole, learned = words(encoded, 2)
    assert learned == ["good", "film", "<end>"]
    assert whole[:3] == ["<start>", "<user>", "a"]
    assert whole[-6:-3] == ["<end>", "<start>", "<model>"]
    assert len(whole) == 16
    (note,) = encoded.notes
    assert "2 of 3 rows are longer than 16 tokens (longest 40)" in note
    assert "1 lose the middle of what stands before the first answer, 2 lose their end" in note
    assert "so that 3 of 6 answers are not read at all" in note


def test_what_is_cut_for_the_answers_room_is_told() -> None:
    tokenizer = decoder_words(MARKS, TEMPLATES["chatml"][0])
    encoded = encode(tokenizer, talk("what"), talk("a b c d " * 3), limit=16, answered=False)  # 16 - 4 are left
    assert len(words(encoded, 3)[0]) == 12
    (note,) = encoded.notes
    assert note.startswith("1 of 2 rows are longer than 12 tokens")
    assert "the model takes 16, and task.max_new_tokens = 4 are for its answer" in note


def test_a_template_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(DataError, match=r"row 0: nothing of the assistant's turns is left.*task\.max_length = 4"):
        encode(decoder_words(MARKS, TEMPLATES["chatml"][0]), talk("what is", "good film"), most=4)


SAID = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d", "good", "bad"]), min_size=1, max_size=12), min_size=2, max_size=8
)


@settings(max_examples=25)
@given(st.lists(SAID, min_size=1, max_size=4), st.integers(9, 64), st.sampled_from(sorted(TEMPLATES)))
def test_something_is_learned_of_every_conversation_and_no_more_than_is_said(
    said: list[list[list[str]]], most: int, family: str
) -> None:
    tokenizer = decoder_words(MARKS, TEMPLATES[family][0])
    conversations = [talk(*(" ".join(words) for words in each[: len(each) // 2 * 2])) for each in said]
    encoded = encode(tokenizer, *conversations, most=most)
    whole = encode(tokenizer, *conversations, most=10_000, limit=10_000)
    assert (encoded.lengths <= most).all()
    assert (encoded.terms > 0).all()
    assert (encoded.terms <= whole.terms).all()
    assert any("longer than" in note for note in encoded.notes) == bool((whole.lengths > most).any())
    batch = encoded.batch(np.arange(len(conversations)))
    assert ((batch["labels"] != IGNORED).sum(dim=1).numpy() == encoded.terms).all()
    learned = batch["labels"] != IGNORED
    width = batch["labels"].shape[1]
    assert torch.equal(batch["labels"][learned], batch["input_ids"][:, -width:][learned])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder"))


def test_the_loss_is_that_of_each_answer_given_all_before_it(decoder: Path) -> None:
    """Against the model's whole logits, answer by answer, as `apply_chat_template` renders what it is asked."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(decoder), AutoTokenizer.from_pretrained(decoder)
    conversations = [talk("what is 1 plus 2 ?", "it equals 3", "so ?", "so it is 3"), talk("red", "blue")]
    encoded = Chat(64, 4).encode(table(*conversations), np.arange(2), tokenizer, limit=64)
    with torch.inference_mode():
        sums, counts = answer_losses(model, encoded.batch([0, 1]))
    for turns, total, count in zip(conversations, sums, counts, strict=True):
        expected, number = 0.0, 0
        for place in range(1, len(turns), 2):
            texts = [
                tokenizer.apply_chat_template(turns[:place], tokenize=False, add_generation_prompt=True),
                tokenizer.apply_chat_template(turns[: place + 1], tokenize=False),
            ]
            front, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([whole])).logits[0, len(front) - 1 : -1]
            expected += float(F.cross_entropy(logits, torch.tensor(whole[len(front) :]), reduction="sum"))
            number += len(whole) - len(front)
        assert int(count) == number
        assert float(total) == pytest.approx(expected, rel=1e-5)
    figures = Chat(64, 4).score(encoded, np.arange(2), sums)
    assert figures["loss"] == pytest.approx(float(sums.sum() / counts.sum()), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))


def test_what_is_shown_ends_where_the_last_answer_begins(decoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    model = AutoModelForCausalLM.from_pretrained(decoder)
    task = Chat(64, 4).fitted(model, tokenizer)
    turns = talk("what is 1 plus 2 ?", "it equals 3", "so ?", "so it is 3")
    encoded = task.encode(table(turns, turns), np.array([1]), tokenizer, limit=64)
    shown = task.sampling(encoded)
    assert shown is not None
    writing, rows = shown
    batch = rows.batch(writing.prompts(rows, np.array([1])))
    front = tokenizer.apply_chat_template(turns[:3], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(batch["input_ids"][0][batch["attention_mask"][0].bool()]) == " ".join(front.split())
    asked = task.encode(table(turns[:3]), np.arange(1), tokenizer, limit=64, answered=False)
    given = asked.batch(task.prompts(asked, np.arange(1)))
    assert given["input_ids"][given["attention_mask"].bool()].tolist() == (
        batch["input_ids"][batch["attention_mask"].bool()].tolist()
    )
    (sample,) = writing.samples(rows, np.array([1]), torch.tensor([[3, 0, 0, 0]]))
    assert sample.right == ("so it is 3",)
