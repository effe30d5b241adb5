"""What all pages share: colours that can be told apart by those who see fewer of them, and values that sort."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import numpy as np
import pytest

# What is left of a colour (linear light) for eyes without one kind of cones: Machado, Oliveira and Fernandes, 2009.
EYES = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Oklab: in it, equal distances look equally far apart. From linear light to cones, and from their cube roots on.
TO_CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]
APART = 0.12
"""Distance in Oklab; 0.02 is about what can just be seen side by side."""


def light(colour: str) -> np.ndarray:
    values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(values: np.ndarray) -> np.ndarray:
    return TO_LAB @ np.cbrt(np.array(TO_CONES) @ np.clip(values, 0, 1))


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(light(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


def schemes() -> list[dict[str, str]]:
    style = resources.files("fedsa.runs").joinpath("pages/style.css.jinja").read_text(encoding="utf-8")
    found = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in style.split(":root")[1:]]
    assert [len(each) for each in found] == [15, 15]  # light, dark
    return found


@pytest.mark.parametrize("scheme", schemes(), ids=["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_any_two_colours_can_be_told_apart(scheme: dict[str, str], eyes: str) -> None:
    seen = {f"c{number}": lab(np.array(EYES[eyes]) @ light(scheme[f"c{number}"])) for number in range(8)}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > APART, (one, other)


@pytest.mark.parametrize("scheme", schemes(), ids=["light", "dark"])
def test_texts_and_lines_stand_out_from_the_page(scheme: dict[str, str]) -> None:
    for text in ("ink", "muted", "accent"):
        for ground in ("page", "card"):
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
    assert contrast(scheme["ink"], scheme["mark"]) >= 4.5
    for number in range(8):
        assert contrast(scheme[f"c{number}"], scheme["page"]) >= 3, number
