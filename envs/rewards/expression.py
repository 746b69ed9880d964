"""The countdown verifier: 1 where an expression uses the given numbers and reaches the target.

The policy's text is parsed, never evaluated as code; arithmetic is exact.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from fractions import Fraction

from manta.envs.records import Task
from manta.envs.rewards.artifact import ArtifactReward
from manta.envs.rewards.version import version_of

MAX_CHARACTERS = 200
ALLOWED = re.compile(r"[0-9+\-*/() ]+")


class Expression(ArtifactReward):
    """`task.reference` is {"numbers": [...], "target": ...}; every number is used exactly once.

    The expression is what follows the last `after` (the whole text without it), up to a newline
    or an equals sign: integers, + - * / and parentheses, at most 200 characters.
    """

    def __init__(self, after: str | None = None) -> None:
        self._after = after
        self.version = version_of("expression", {"after": after}, sys.modules[__name__])

    def judge(self, task: Task, artifact: str) -> float:
        """Raises ValueError naming the task where its reference has another form."""
        numbers, target = _reference(task)
        text = artifact.rpartition(self._after)[2] if self._after else artifact
        text = re.split("[\n=]", text.strip(), maxsplit=1)[0].strip()
        tree = parsed(text)
        if tree is None or Counter(_integers(tree)) != Counter(numbers):
            return 0.0
        return float(_value(tree) == target)


def parsed(text: str) -> ast.expr | None:
    """The tree of an expression of integers, None where it is none (or too long)."""
    if len(text) > MAX_CHARACTERS or not ALLOWED.fullmatch(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError):
        return None
    return tree if _is_arithmetic(tree) else None


def _is_arithmetic(tree: ast.AST) -> bool:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
        return _is_arithmetic(tree.left) and _is_arithmetic(tree.right)
    return isinstance(tree, ast.Constant) and isinstance(tree.value, int)


def _integers(tree: ast.expr) -> list[int]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]  # type: ignore[misc]


def _value(tree: ast.expr) -> Fraction | None:
    """None where it divides by zero."""
    if isinstance(tree, ast.Constant):
        assert isinstance(tree.value, int)
        return Fraction(tree.value)
    assert isinstance(tree, ast.BinOp)
    left, right = _value(tree.left), _value(tree.right)
    if left is None or right is None:
        return None
    if isinstance(tree.op, ast.Add):
        return left + right
    if isinstance(tree.op, ast.Sub):
        return left - right
    if isinstance(tree.op, ast.Mult):
        return left * right
    return left / right if right else None


def _reference(task: Task) -> tuple[list[int], Fraction]:
    reference = task.reference
    if isinstance(reference, dict):
        numbers, target = reference.get("numbers"), reference.get("target")
        if isinstance(numbers, list) and isinstance(target, int):
            return [n for n in numbers if isinstance(n, int)], Fraction(target)
    raise ValueError(
        f'task {task.id}: its reference must be {{"numbers": [...], "target": ...}}, '
        f"it is {reference!r:.80}"
    )
