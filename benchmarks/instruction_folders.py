"""Instructions and preferences with a file for each client: the rows of instructions-small and dpo-small.

    python benchmarks/instruction_folders.py --out runs/stand-in
    FEDSA_DATA=runs/stand-in fedsa run instructions-small
    FEDSA_DATA=runs/stand-in fedsa run dpo-small

Reads ``$FEDSA_DATA/gsm8k/train.jsonl`` (github.com/openai/grade-school-math, MIT) and
``$FEDSA_DATA/tinyshakespeare/input.txt`` (github.com/karpathy/char-rnn, public domain). Writes:

- ``instructions_by_client``: two schools, whose pupils ask for the working of a problem and then for its result (one
  with ``messages``, one in ShareGPT's ``conversations``), and two roles of Shakespeare's, each in a conversation of
  several turns with whoever speaks to it (``messages`` with a system's turn).
- ``preferences_by_client``: four roles. What is asked is what was said to the role; chosen is what it answers in the
  play, rejected is a speech of another role, of about the same length.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

_SHORT = 400  # characters of a turn: longer speeches are left out
_EXCHANGES = 3  # of a conversation, at most

Turn = dict[str, str]
Row = dict[str, Any]


def problems(path: Path) -> list[list[Turn]]:
    """Return GSM8K's problems as conversations: a problem, its working, a question for the result, the result."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        working, _, result = re.sub(r"<<[^>]*>>", "", row["answer"]).partition("\n#### ")
        said = [row["question"], working, "So what is the answer?", f"The answer is {result.strip()}."]
        found.append([_turn(place, text) for place, text in enumerate(said)])
    return found


def speeches(path: Path) -> list[tuple[str, str]]:
    """Return the speeches of Shakespeare's plays in order: the role, and what it says."""
    parts = [speech.partition(":\n") for speech in path.read_text(encoding="utf-8").strip().split("\n\n")]
    return [(role, said.strip()) for role, _, said in parts if said.strip()]


def exchanges(spoken: list[tuple[str, str]], role: str) -> list[list[tuple[str, str]]]:
    """Return what is said to a role, with its answer: a list for each row of exchanges that follow each other."""
    found: list[list[tuple[str, str]]] = []
    last = -9
    for place in range(1, len(spoken)):
        (other, asked), (who, answer) = spoken[place - 1], spoken[place]
        if who != role or other == role or max(len(asked), len(answer)) > _SHORT:
            continue
        if place - last == 2 and len(found[-1]) < _EXCHANGES:
            found[-1].append((asked, answer))
        else:
            found.append([(asked, answer)])
        last = place
    return found


def _turn(place: int, text: str) -> Turn:
    return {"role": "assistant" if place % 2 else "user", "content": text}


def _name(role: str) -> str:
    return role.lower().replace(" ", "-")


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=120, help="of each school")
    options = parser.parse_args()
    if not os.environ.get("FEDSA_DATA"):
        parser.error("set FEDSA_DATA to the folder that has gsm8k/train.jsonl and tinyshakespeare/input.txt")
    data = Path(os.environ["FEDSA_DATA"])
    count, target = options.rows, options.out / "instructions_by_client"
    lessons = problems(data / "gsm8k" / "train.jsonl")
    _write(target / "school-1.jsonl", [{"messages": turns} for turns in lessons[:count]])
    names = {"user": "human", "assistant": "gpt"}
    _write(
        target / "school-2.jsonl",
        [
            {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]}
            for turns in lessons[count : 2 * count]
        ],
    )
    spoken = speeches(data / "tinyshakespeare" / "input.txt")
    roles = _talkative(spoken, 4)
    for role in roles[:2]:
        system = {"role": "system", "content": f"You are {role.title()}, in a play by Shakespeare."}
        talks = [
            [_turn(place, text) for place, text in enumerate(text for pair in own for text in pair)]
            for own in exchanges(spoken, role)
        ]
        _write(target / f"{_name(role)}.jsonl", [{"messages": [system, *turns]} for turns in talks])
    for role in roles:
        _write(options.out / "preferences_by_client" / f"{_name(role)}.jsonl", preferences(spoken, role))
    print(f"{options.out}: two schools of {count} lessons, and {', '.join(roles)}")


def _talkative(spoken: list[tuple[str, str]], count: int) -> list[str]:
    """Return the roles that answer most often."""
    answers = Counter(role for role, said in spoken if len(said) <= _SHORT)
    return [role for role, _ in answers.most_common(count)]


def preferences(spoken: list[tuple[str, str]], role: str) -> list[Row]:
    """Return what is said to a role, with its own answer and one of another role's."""
    own = [pair for pairs in exchanges(spoken, role) for pair in pairs]
    others = sorted({said for who, said in spoken if who != role and len(said) <= _SHORT})
    chosen = random.Random(role)
    rows = []
    for asked, answer in own:
        alike = [said for said in others if abs(len(said) - len(answer)) <= 10 + len(answer) // 10]
        rows.append({"prompt": asked, "chosen": answer, "rejected": chosen.choice(alike or others)})
    return rows


if __name__ == "__main__":
    main()
