"""Chat templates: what is trained of a conversation is what the template adds for the answer, with its end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from fedsa.errors import DataError
from fedsa.tasks.generation import Generation
from fedsa.tasks.multiple_choice import MultipleChoice
from fedsa.types import CLASS_NUMBER
from support.chat_templates import LOOP, MARKS, ROLE, TEMPLATES
from support.tiny_words import decoder_words


def table(**columns):
    return Dataset.from_dict(columns).add_column(CLASS_NUMBER, [0] * len(next(iter(columns.values()))))


def tokens(encoded, item):
    whole = encoded.tokens[encoded.offsets[item] : encoded.offsets[item + 1]].tolist()
    said = int(encoded.answers[item])
    return tuple(encoded.tokenizer.convert_ids_to_tokens(part) for part in (whole[: len(whole) - said], whole[-said:]))


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_is_what_the_template_adds_for_it(family):
    template, said, end = TEMPLATES[family]
    tokenizer = decoder_words(MARKS, template)
    rows = table(text=["what is the film", "so"], label=["good film", "bad"])
    task = Generation("{text}", "{label}", metric="f1", chat=True, max_new_tokens=4)
    encoded = task.encode(rows, np.arange(2), tokenizer, limit=64)
    front, answer = tokens(encoded, 0)
    turns = [{"role": "user", "content": "what is the film"}]
    assert answer == said.split()
    assert front == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).split()
    whole = [*turns, {"role": "assistant", "content": "good film"}]
    rendered = tokenizer.apply_chat_template(whole, tokenize=False).split()
    assert [*front, *answer] == [*rendered, *([] if family != "without an end" else ["</s>"])]
    alone = encoded.tokens[encoded.offsets[2] : encoded.offsets[3]]  # what the model writes on
    assert tokenizer.convert_ids_to_tokens(alone) == front
    ends = tokenizer.convert_tokens_to_ids([end, "</s>"])
    assert set(encoded.ends) == set(ends)
    model = SimpleNamespace(can_generate=lambda: True, generation_config=SimpleNamespace(eos_token_id=[7, ends[0]]))
    assert set(task.fitted(model, tokenizer).stops) == {*ends, 7}
    assert encoded.notes == ()


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_choice_is_an_answer_too(family):
    template, said, _ = TEMPLATES[family]
    tokenizer = decoder_words(MARKS, template)
    task = MultipleChoice("{text}", "right", choices=("choices",), chat=True)
    rows = table(text=["what"] * 2, choices=[["good film", "bad"]] * 2, right=[0, 1])
    encoded = task.encode(rows, np.arange(2), tokenizer, limit=64)
    first, second, third = (tokens(encoded, item) for item in (0, 2, 3))
    assert first == second
    assert first[1] == said.split()
    assert third[1] == said.replace("good film", "bad").split()
    assert first[0] == third[0]


def test_what_the_model_writes_ends_where_the_turn_ends():
    tokenizer = decoder_words(MARKS, TEMPLATES["gemma"][0])
    task = Generation("{text}", "{label}", metric="exact_match", chat=True, max_new_tokens=4)
    encoded = task.encode(table(text=["what"], label=["good"]), np.arange(1), tokenizer, limit=64)
    written = tokenizer.convert_tokens_to_ids(["good", "<end>", "bad", "bad"])
    figures = task.score(encoded, np.arange(1), torch.zeros(1), torch.tensor([written]))
    assert figures["exact_match"] == 1


AROUND = {  # what a template writes around an answer in plain words
    "an empty thought": "{% if m['role'] == 'assistant' %}(thought) (over) {% endif %}{{ m['content'] }} <end>",
    "a header": "{% if m['role'] == 'assistant' %}Answer: {% endif %}{{ m['content'] }} <end>",
    "an end in words": "{{ m['content'] }} now end",
    "a special header": "{% if m['role'] == 'assistant' %}<think> </think> {% endif %}{{ m['content'] }} <end>",
}


@pytest.mark.parametrize("name", AROUND)
def test_what_the_template_writes_around_an_answer_is_not_counted_as_one(name):
    template = f"{LOOP}<start> {AROUND[name]} {{% endfor %}}{{% if add_generation_prompt %}}<start> {{% endif %}}"
    tokenizer = decoder_words(MARKS, template, extra=["(thought)", "(over)", "now", "end"])
    task = Generation("{text}", "{label}", metric="exact_match", chat=True, max_new_tokens=8)
    encoded = task.encode(table(text=["what"], label=["good film"]), np.arange(1), tokenizer, limit=64)
    written = tokenizer.convert_tokens_to_ids(tokens(encoded, 0)[1])
    assert encoded.texts([written]) == ["good film"]
    assert task.score(encoded, np.arange(1), torch.zeros(1), torch.tensor([written]))["exact_match"] == 1
    other = tokenizer.convert_tokens_to_ids(["bad", "film", "<end>"])
    assert encoded.texts([other]) == ["bad film"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # the prompt has a thought that the conversation has not
        (
            f"{LOOP}<start> {ROLE} {{{{ m['content'] }}}} <end> {{% endfor %}}"
            "{% if add_generation_prompt %}<start> <model> <think> {% endif %}", "does not begin with the prompt"
        ),
        # all turns but the last are left out
        ("{{ messages[-1]['content'] }}{% if add_generation_prompt %} <model>{% endif %}", "does not begin with the"),
        ("{{ raise_exception('a system turn is needed') }}", "does not take a user's turn.*a system turn is needed"),
        ("{{ messages[0].content.nothing.at_all }}", "does not take a user's turn"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_go_is_refused(template, message):
    task = Generation("{text}", "{label}", chat=True)
    with pytest.raises(DataError, match=rf"(?s){message}.*set task.chat = false") as refusal:
        task.encode(table(text=["what"], label=["good"]), np.arange(1), decoder_words(MARKS, template), limit=64)
    assert len(str(refusal.value)) < 500


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        Generation("{text}", "{text}", chat=True).encode(table(text=["so"]), np.arange(1), decoder_words(), limit=64)


def test_header_and_end_of_a_conversation_are_kept_where_it_is_cut():
    tokenizer = decoder_words(MARKS, TEMPLATES["gemma"][0])
    rows = table(text=["what " + "a b c d " * 20 + "now"], label=["good"])
    encoded = Generation("so then {text} Answer:", "{label}", chat=True, max_length=20).encode(
        rows, np.arange(1), tokenizer, limit=64
    )
    front, answer = tokens(encoded, 0)
    assert len(front) + len(answer) == 20
    assert front[:6] == ["<s>", "<start>", "<user>", "so", "then", "what"]
    assert front[-5:] == ["now", "Answer:", "<end>", "<start>", "<model>"]
    assert answer == ["good", "<end>"]


def test_a_turn_may_end_with_a_word_that_is_no_special_token():
    template = TEMPLATES["gemma"][0].replace("<end>", "then")
    tokenizer = decoder_words(MARKS, template)
    encoded = Generation("{text}", "{label}", chat=True).encode(
        table(text=["what"], label=["good"]), np.arange(1), tokenizer, limit=64
    )
    assert tokens(encoded, 0)[1] == ["good", "then"]
    assert set(encoded.ends) == set(tokenizer.convert_tokens_to_ids(["then", "</s>"]))
