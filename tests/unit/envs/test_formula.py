import math
import operator
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.envs.rewards.formula import Formula

values = st.floats(-100, 100)
NAMES = ("a", "b", "c")


Tree = tuple[str, Callable[[Mapping[str, float]], float]]
"""A formula's text and, built beside it, what it means where nothing is absent."""

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "min": min, "max": max}


def joined(left: Tree, name: str, right: Tree) -> Tree:
    text = f"({left[0]} {name} {right[0]})"
    if name in ("min", "max"):
        text = f"{name}({left[0]}, {right[0]})"
    return text, lambda components: OPERATORS[name](left[1](components), right[1](components))


def negated(tree: Tree) -> Tree:
    return f"-{tree[0]}", lambda components: -tree[1](components)


def named(name: str) -> Tree:
    return name, lambda components: components[name]


def trees() -> st.SearchStrategy[Tree]:
    numbers: list[Tree] = [("0.5", lambda components: 0.5), ("2", lambda components: 2.0)]
    leaves = st.sampled_from([*map(named, NAMES), *numbers])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(joined, inner, st.sampled_from(sorted(OPERATORS)), inner),
            st.builds(negated, inner),
        ),
        max_leaves=12,
    )


@given(trees(), values, values, values)
def test_agrees_with_the_operators_where_all_is_there(
    tree: Tree, a: float, b: float, c: float
) -> None:
    text, meaning = tree
    components = {"a": a, "b": b, "c": c}
    formula = Formula(text)
    assert formula.evaluate(components) == meaning(components)
    assert formula.names <= set(NAMES)


@given(trees(), st.dictionaries(st.sampled_from(NAMES), values))
def test_any_absence_gives_a_number(tree: Tree, components: dict[str, float]) -> None:
    assert math.isfinite(Formula(tree[0]).evaluate(components))


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused_with_a_column(text: str) -> None:
    try:
        names = Formula(text).names
    except ValueError as error:
        assert "column" in str(error) or "null byte" in str(error)
    else:
        assert all(name.isidentifier() for name in names)


@pytest.mark.parametrize(
    ("text", "components", "value"),
    [
        ("1.0 * correct + 0.1 * format", {"correct": 1.0, "format": 0.5}, 1.05),
        ("1.0 * correct + 0.1 * format", {"correct": 1.0}, 1.0),
        ("1.0 * correct + 0.1 * format", {"format": 1.0}, 0.1),
        ("1.0 * correct + 0.1 * format", {}, 0.0),
        ("correct - length", {"length": 0.25}, -0.25),
        ("correct - length", {"correct": 0.25}, 0.25),
        ("correct * format", {"correct": 1.0}, 0.0),
        ("correct * format + 0.5", {"correct": 1.0}, 0.5),
        ("correct * (format + 0.5)", {"correct": 2.0}, 1.0),
        ("min(a, b)", {"b": 3.0}, 3.0),
        ("max(a, b, 1)", {}, 1.0),
        ("-a", {}, 0.0),
        ("a / b", {"a": 1.0, "b": 4.0}, 0.25),
        ("(correct > 0.5) * format", {"correct": 1.0, "format": 0.3}, 0.3),
        ("(correct > 0.5) * format", {"correct": 0.2, "format": 0.3}, 0.0),
        ("(correct > 0.5) * format + 1", {"format": 0.3}, 1.0),
        ("(a <= b) + (a == b) + (a != b) + (a < b) + (a >= b)", {"a": 1.0, "b": 1.0}, 3.0),
    ],
)
def test_absence(text: str, components: dict[str, float], value: float) -> None:
    assert Formula(text).evaluate(components) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("a +", 4),
        ("", 1),
        ("a ** 2", 1),
        ("b + f(a)", 5),
        ("a.real", 1),
        ("a[0]", 1),
        ("a if b else c", 1),
        ("lambda: 1", 1),
        ("b + 'x'", 5),
        ("True", 1),
        ("1j", 1),
        ("1e300", 1),
        ("0 < a < 1", 1),
        ("min()", 1),
        ("min + 1", 1),
        ("max(*a)", 5),
        ("min(a, key=b)", 1),
        ("a and b", 1),
        ("not a", 1),
        ("[a]", 1),
        ("(a := 1)", 2),
    ],
)
def test_what_does_not_belong_is_shown_by_its_column(text: str, column: int) -> None:
    with pytest.raises(ValueError, match=rf"column {column}: "):
        Formula(text)


@pytest.mark.parametrize(
    "text", ["-" * 900 + "a", "+".join("a" * 100), "(" * 300 + "a" + ")" * 300]
)
def test_deep_formulas_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nested"):
        Formula(text)


def test_long_formulas_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1000"):
        Formula("a" * 1001)


def test_unknown_names_get_the_nearest() -> None:
    formula = Formula("correct + 0.1 * fromat")
    with pytest.raises(ValueError, match="'fromat'; did you mean 'format'"):
        formula.check({"correct", "format"})
    with pytest.raises(ValueError, match=r"there are \['x'\]"):
        Formula("correct").check({"x"})
    formula.check({"correct", "fromat", "more"})


def test_values_that_are_no_reward() -> None:
    with pytest.raises(ValueError, match="divides by zero"):
        Formula("1 / a").evaluate({"a": 0.0})
    with pytest.raises(ValueError, match="is inf"):
        Formula("a * a").evaluate({"a": 1e200})
    with pytest.raises(ValueError, match="is nan"):
        Formula("a").evaluate({"a": math.nan})
