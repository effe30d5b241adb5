"""The programs in benchmarks that write files in the hub's form, on a few rows as their sources have them."""

import json

import datasets
import pytest

from support.repository import program


@pytest.fixture
def convert(tmp_path, monkeypatch):
    def call(name, *arguments):
        """Run a program on the sources, and return the folder that it writes."""
        monkeypatch.setenv("FEDSA_DATA", str(tmp_path / "sources"))
        monkeypatch.setattr("sys.argv", [name, "--out", str(tmp_path / "out"), *arguments])
        program(name).main()
        return tmp_path / "out"

    return call


def rows_of(folder, split):
    return datasets.Dataset.from_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet")).to_list()


def write_instructions(folder, instruction, answer):
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        text = json.dumps([{"instruction": instruction, "answer": answer}])
        (folder / f"{split}.json").write_text(text, encoding="utf-8")


def test_questions_with_their_choices_in_one_text_become_columns(convert, tmp_path):
    sources = tmp_path / "sources" / "commonsense"
    asked = "Please choose the correct answer to the question: Which is\nhot?"
    listed = "Answer1: ice Answer2: fire, or so Answer3: fog\n\nAnswer format: answer1/answer2/answer3"
    for name in ("ARC-Easy", "ARC-Challenge"):
        write_instructions(sources / name, f"{asked}\n\n{listed}", "answer2")
    asked = "Please answer the following question with true or false, question: is it? or not?"
    write_instructions(sources / "boolq", f"{asked}\n\nAnswer format: true/false", "false")
    out = convert("commonsense_folders")
    for name in ("ARC-Easy", "ARC-Challenge"):
        for split in ("train", "test"):
            assert rows_of(out / "ai2_arc" / name, split) == [
                {
                    "question": "Which is\nhot?",
                    "choices": {"text": ["ice", "fire, or so", "fog"], "label": ["A", "B", "C"]},
                    "answerKey": "B",
                }
            ]
    assert rows_of(out / "boolq", "validation") == [{"question": "is it? or not", "answer": False}]


def test_a_play_becomes_the_turns_of_those_who_say_the_most(convert, tmp_path):
    source = tmp_path / "sources" / "tinyshakespeare" / "input.txt"
    source.parent.mkdir(parents=True)
    source.write_text("ROMEO:\nAy me!\n\nAll:\nO!\n\nJULIET:\nO Romeo:\nRomeo!\n\nROMEO:\n\nROMEO:\nShall I\n", "utf-8")
    out = convert("shakespeare_folders", "--roles", "2")
    assert rows_of(out / "tiny_shakespeare_roles", "train") == [
        {"role": "ROMEO", "text": "Ay me!"},
        {"role": "JULIET", "text": "O Romeo:\nRomeo!"},
        {"role": "ROMEO", "text": "Shall I"},
    ]
