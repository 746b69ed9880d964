"""The formula that combines named components into a reward.

Owns parsing into a closed tree and its arithmetic with absent components. What the components are
and who computes them is `manta.envs.rewards.compose`.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Collection, Mapping

MAX_CHARACTERS = 1000
MAX_DEPTH = 60
MAX_NUMBER = 1e100
FUNCTIONS = ("min", "max")


class Formula:
    """Numbers, component names, + - * /, parentheses, min, max and one comparison at a time.

    Absence: a component that is not there makes the product, quotient or comparison around it
    absent; sums, differences, min and max go on with what is there (all operands absent: absent).
    So `1.0 * correct + 0.1 * judge` without `judge` is `1.0 * correct`. A formula whose whole is
    absent is 0. A comparison is 1 where it holds, else 0.

    Raises ValueError with the column of what does not belong.
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        if len(self.text) > MAX_CHARACTERS:
            raise ValueError(f"formula: {len(self.text)} characters, at most {MAX_CHARACTERS}")
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            column = error.offset if error.lineno == 1 else None
            raise self._error(error.msg, column or len(self.text) + 1) from error
        names: set[str] = set()
        self._check(self._tree, names, 0)
        self.names = frozenset(names)

    def check(self, known: Collection[str]) -> None:
        """Raises ValueError where a name is not in `known`, with the nearest one that is."""
        for name in sorted(self.names - set(known)):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(known)}"
            raise ValueError(f"formula {self.text!r}: no component is named {name!r}; {hint}")

    def evaluate(self, components: Mapping[str, float]) -> float:
        """The value for these components; those that are missing are absent.

        Raises ValueError where it divides by zero or is not finite.
        """
        try:
            value = _value(self._tree, components)
        except ZeroDivisionError as error:
            raise ValueError(
                f"formula {self.text!r} divides by zero with {dict(components)}"
            ) from error
        value = 0.0 if value is None else value
        if not math.isfinite(value):
            raise ValueError(f"formula {self.text!r} is {value} with {dict(components)}")
        return value

    def _check(self, node: ast.expr, names: set[str], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep", node.col_offset + 1)
        for part in _parts(node):
            self._check(part, names, depth + 1)
        if isinstance(node, ast.Name):
            if node.id in FUNCTIONS:
                raise self._error(f"{node.id} needs (...)", node.col_offset + 1)
            names.add(node.id)
        elif not _allowed(node):
            raise self._error(
                "only numbers, component names, + - * / ( ), min(...), max(...) and single "
                "comparisons are known here",
                node.col_offset + 1,
            )

    def _error(self, message: str, column: int) -> ValueError:
        return ValueError(f"formula {self.text!r}, column {column}: {message}")


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return type(value) in (int, float) and abs(value) <= MAX_NUMBER  # type: ignore[arg-type]
        case ast.BinOp(op=operator):
            return isinstance(operator, ast.Add | ast.Sub | ast.Mult | ast.Div)
        case ast.UnaryOp(op=ast.USub()):
            return True
        case ast.Compare(ops=[operator]):
            return isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.Eq | ast.NotEq)
        case ast.Call(func=ast.Name(id=name), args=[_, *_], keywords=[]):
            return name in FUNCTIONS and not any(isinstance(a, ast.Starred) for a in node.args)
    return False


def _parts(node: ast.expr) -> list[ast.expr]:
    """The operands of a node."""
    match node:
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.Compare(left=left, comparators=comparators):
            return [left, *comparators]
        case ast.Call(args=arguments):
            return arguments
    return []


def _value(node: ast.expr, components: Mapping[str, float]) -> float | None:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return components.get(name)
    values = [_value(part, components) for part in _parts(node)]
    there = [value for value in values if value is not None]
    if not there:
        return None
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return min(there) if name == "min" else max(there)
        case ast.BinOp(op=ast.Add()):
            return sum(there)
        case ast.BinOp(op=ast.Sub()):
            left, right = values
            return (left or 0.0) - (right or 0.0)
    return None if len(there) < len(values) else _strict(node, there)


def _strict(node: ast.expr, values: list[float]) -> float:
    """Operators that need all their operands."""
    match node:
        case ast.UnaryOp():
            return -values[0]
        case ast.BinOp(op=ast.Mult()):
            return values[0] * values[1]
        case ast.BinOp():
            return values[0] / values[1]
    assert isinstance(node, ast.Compare)
    left, right = values
    match node.ops[0]:
        case ast.Lt():
            return float(left < right)
        case ast.LtE():
            return float(left <= right)
        case ast.Gt():
            return float(left > right)
        case ast.GtE():
            return float(left >= right)
        case ast.Eq():
            return float(left == right)
    return float(left != right)
