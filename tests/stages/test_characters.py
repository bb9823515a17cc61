"""The tables of characters are those of polars, and agree with Python's where both know a character."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np

from stages.text import characters
from stages.text.characters_kernel import DIGIT, IN_WORD, LETTER, NUMBER, SYLLABLE


@cache
def codes() -> list[int]:
    """The characters that this Python knows."""
    return [code for code in range(0x110000) if unicodedata.category(chr(code)) not in {"Cn", "Cs"}]


def test_the_file_is_what_its_module_makes() -> None:
    """After an update of polars to a newer Unicode: `python -m stages.text.characters`, and raise the versions."""
    made = characters.generate()
    assert np.array_equal(characters.properties(), made["properties"])
    assert np.array_equal(characters.lower_case(), made["lower_case"] + np.arange(characters.CASED))


def test_letters_and_numbers_are_those_of_unicodedata() -> None:
    """Every character that this Python knows has the same category."""
    bits = characters.properties()
    kinds = {code: unicodedata.category(chr(code)) for code in codes()}
    assert [code for code in codes() if (kinds[code][0] == "L") != bool(bits[code] & LETTER)] == []
    assert [code for code in codes() if (kinds[code][0] == "N") != bool(bits[code] & NUMBER)] == []
    assert [code for code in codes() if (kinds[code] == "Nd") != bool(bits[code] & DIGIT)] == []
    word = IN_WORD | SYLLABLE
    assert [code for code in codes() if (kinds[code][0] in "LMN" or code == ord("_")) != bool(bits[code] & word)] == []


def test_lower_case_is_that_of_python() -> None:
    """A character with one lower-case character has the same one."""
    lower = characters.lower_case()
    cased = [code for code in codes() if code < len(lower) and chr(code) not in characters.SPECIAL_CASED]
    assert [code for code in cased if chr(lower[code]) != chr(code).lower()] == []
    assert all(chr(code).lower() == chr(code) for code in codes() if code >= len(lower))
