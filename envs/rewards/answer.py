"""Answers: how one is found in a text, and when two are the same.

Numbers are compared exactly, as fractions; nothing is ever evaluated. Owns no values or scores.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal, TypeAlias

from manta.envs.records import Json

Answer: TypeAlias = Fraction | str
Part: TypeAlias = Literal["whole", "last_number"]

MAX_NUMBER = 64
MAX_TEXT = 4096
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
NUMBER = re.compile(rf"([-+]?)\s?\$?\s?([-+]?)({DIGITS})(?:/({DIGITS}))?\.?")
IN_TEXT = re.compile(rf"(?:(?<![0-9a-zA-Z)])-)?\$?{DIGITS}")


def number(text: str) -> Fraction | None:
    """The number that `text` is: `1,234`, `$5`, `-$0.50`, `12.0`, `3/4`, at most 64 characters.

    A full stop at the end is dropped. None for anything else, a zero denominator and exponents
    included.
    """
    text = text.strip().replace("\u2212", "-")
    found = NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER else None
    if found is None:
        return None
    outer, inner, numerator, denominator = found.groups()
    if outer and inner:
        return None
    value = Fraction(numerator.replace(",", ""))
    if denominator is not None:
        divisor = Fraction(denominator.replace(",", ""))
        if divisor == 0:
            return None
        value /= divisor
    return -value if "-" in (outer, inner) else value


def normalised(text: str) -> Answer:
    """A number where `text` is one, else its words with single spaces between them."""
    value = number(text)
    return " ".join(text.split()) if value is None else value


def of_reference(reference: Json) -> Answer:
    """The answer that a task's reference is. Raises ValueError unless it is a text or a number."""
    if isinstance(reference, str):
        return normalised(reference)
    if isinstance(reference, int) and not isinstance(reference, bool):
        return Fraction(reference)
    if isinstance(reference, float) and math.isfinite(reference):
        return Fraction(Decimal(repr(reference)))
    raise ValueError(f"reference {reference!r:.80} is neither a text nor a number")


@dataclass(frozen=True, slots=True)
class Extraction:
    """Where an answer stands in a text, whose last 4,096 characters count.

    `after`: what follows the last such marker, to the end of its line; without the marker there
    is no answer. `part`: all of it (`whole`), or the last number in it (`last_number`).
    Raises ValueError for an unknown part or an empty marker.
    """

    part: Part = "whole"
    after: str | None = None

    def __post_init__(self) -> None:
        if self.part not in ("whole", "last_number"):
            raise ValueError(f"extract is {self.part!r}: choose whole or last_number")
        if self.after is not None and not self.after:
            raise ValueError("after is empty: give the marker that comes before the answer")

    def answer(self, text: str) -> Answer | None:
        """None where the text has no answer."""
        text = text[-MAX_TEXT:]
        if self.after is not None:
            _, marker, tail = text.rpartition(self.after)
            if not marker:
                return None
            text = (tail.strip().splitlines() or [""])[0]
        if self.part == "last_number":
            numbers = IN_TEXT.findall(text)
            return number(numbers[-1]) if numbers else None
        found = normalised(text)
        return None if found == "" else found
