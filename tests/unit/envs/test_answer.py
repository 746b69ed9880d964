from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.envs.rewards.answer import Extraction, number, of_reference


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", "1234"),
        ("109,200,000", "109200000"),
        ("$5", "5"),
        ("-$0.50", "-1/2"),
        ("$-5", "-5"),
        ("12.0", "12"),
        (" 7. ", "7"),
        ("+3", "3"),
        ("3/4", "3/4"),
        ("\u22124", "-4"),
        ("0.1", "1/10"),
    ],
)
def test_numbers(text: str, value: str) -> None:
    assert number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1 2",
        "1,23",
        "12,3456",
        "1e9",
        "--1",
        "-$-1",
        "1/0",
        "0x10",
        "1..2",
        "9" * 65,
        "5%",
    ],
)
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


@given(st.integers(-(10**15), 10**15))
def test_grouped_and_plain_integers_agree(value: int) -> None:
    assert number(f"{value:,}") == number(str(value)) == of_reference(value) == value


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for extraction in (Extraction(), Extraction("last_number"), Extraction("whole", "#")):
        assert extraction.answer(text) is None or text


@pytest.mark.parametrize(
    ("extraction", "text", "answer"),
    [
        (Extraction(), " 12.0 ", Fraction(12)),
        (Extraction(), "two  words\n", "two words"),
        (Extraction(), "0", Fraction(0)),
        (Extraction(), "  ", None),
        (Extraction("last_number"), "first 3, then 1,080 dollars.", Fraction(1080)),
        (Extraction("last_number"), "it is -$4.50!", Fraction(-9, 2)),
        (Extraction("last_number"), "so 7-5", Fraction(5)),
        (Extraction("last_number"), "nothing", None),
        (Extraction(after="####"), "3+4=7\n#### 7\nbye", Fraction(7)),
        (Extraction(after="####"), "#### 1 #### 2", Fraction(2)),
        (Extraction(after="####"), "7", None),
        (Extraction(after="####"), "7 ####", None),
        (Extraction("last_number", "answer:"), "answer: it is 8 eggs", Fraction(8)),
    ],
)
def test_extraction(extraction: Extraction, text: str, answer: object) -> None:
    assert extraction.answer(text) == answer


def test_only_the_end_of_a_long_text_counts() -> None:
    assert Extraction("last_number").answer("5" + " " * 5000) is None


@pytest.mark.parametrize("reference", [None, True, [1], {"a": 1}, float("nan")])
def test_references_that_no_answer_can_equal(reference: object) -> None:
    with pytest.raises(ValueError, match="neither a text nor a number"):
        of_reference(reference)  # type: ignore[arg-type]


def test_float_references_mean_what_they_print() -> None:
    assert of_reference(0.1) == Fraction(1, 10)
    assert of_reference(1e20) == 10**20


def test_options_that_are_none() -> None:
    with pytest.raises(ValueError, match="choose whole or last_number"):
        Extraction("first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="after is empty"):
        Extraction(after="")
