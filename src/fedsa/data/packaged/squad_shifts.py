"""The packaged part ``squad-shifts``: questions on passages of five domains, in the manner of SQuAD v1.1.

Sources: Rajpurkar et al., SQuAD, EMNLP 2016 (its development set, CC BY-SA 4.0); Miller et al., The Effect of Natural
Distribution Shift on Question Answering Models, ICML 2020 (the four other domains, CC BY 4.0); both as BIG-bench has
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsa.errors import DataError

if TYPE_CHECKING:
    import datasets

__all__ = ["read_squad_shifts"]

_FILES = {
    "amazon": "amazon_reviews_v1.0.json",
    "new_wiki": "new_wiki_v1.0.json",
    "nyt": "nyt_v1.0.json",
    "reddit": "reddit_v1.0.json",
    "squad": "squaddev_v1.1.json",
}


def read_squad_shifts(folder: Path) -> datasets.Dataset:
    """Return 48,201 questions with columns ``id``, ``domain``, ``document``, ``context``, ``question``, ``answers``.

    ``answers`` is as in SQuAD: a dict of lists, ``text`` and ``answer_start`` (characters into the context), with
    several people's answers to one question. ``document`` numbers the passages: questions on one share it.
    Questions: squad 10,565, nyt 10,056, amazon 9,877, reddit 9,767, new_wiki 7,936.

    Args:
        folder: the fetched part, with the five ``*.json`` files.

    Raises:
        DataError: a file is missing or is not what it should be.
    """
    import datasets

    rows: list[dict[str, Any]] = []
    for domain, name in _FILES.items():
        try:
            rows += _rows(domain, json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"cannot read {folder / name}: {error}; the part is damaged: delete the folder, and it will be fetched "
                "again"
            ) from None
    return datasets.Dataset.from_list(rows)


def _rows(domain: str, content: Any) -> Iterator[dict[str, Any]]:
    passages = [passage for article in content["data"] for passage in article["paragraphs"]]
    for number, passage in enumerate(passages):
        for question in passage["qas"]:
            answers = question["answers"]
            yield {
                "id": question["id"],
                "domain": domain,
                "document": f"{domain}-{number}",
                "context": passage["context"],
                "question": question["question"],
                "answers": {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                },
            }
