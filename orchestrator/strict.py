"""From a YAML tree to frozen dataclasses by their type hints, strictly.

Owns what a value of a type may look like and how a wrong one is told. Knows dataclasses,
`X | None`, `int | dataclass`, `Literal`, tuples, `Mapping[str, X]`, `Json`, bool, int, float and
str; whole numbers stand for floats. All problems of a tree are collected. Does not know what the
values mean.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from manta.envs.records import Json
from manta.orchestrator.yaml_tree import Entries, Items, Node, Place, Scalar, plain, under

T = TypeVar("T")

SHOWN = 10
"""Problems shown at once."""


class RunFileError(ValueError):
    """Everything that is wrong with a run file, one problem a line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        shown = list(self.problems[:SHOWN])
        if len(self.problems) > SHOWN:
            shown.append(f"... and {len(self.problems) - SHOWN} more")
        super().__init__("\n".join(shown))


@dataclass(frozen=True)
class _FreeForm:
    value: Json


_JSON = get_type_hints(_FreeForm)["value"]
_EXPECTED = {
    bool: "true or false (bool)",
    int: "a whole number (int)",
    float: "a number (float)",
    str: "text (str)",
}


class _Invalid:
    """Stands for a value whose problem was recorded."""


_INVALID = _Invalid()


def read(node: Node, kind: type[T], problems: list[str]) -> T | None:
    """`node` as a `kind` (a dataclass), or None with the reasons appended to `problems`."""
    value = _read(node, kind, problems)
    return None if isinstance(value, _Invalid) else cast(T, value)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?`, or the list of what is known."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


def _read(node: Node, hint: Any, problems: list[str]) -> object:
    origin = get_origin(hint)
    if hint == _JSON:
        return plain(node)
    if origin in (Union, UnionType):
        return _read_optional(node, hint, problems)
    if origin is Literal:
        return _read_literal(node, get_args(hint), problems)
    if hint in _EXPECTED:
        return _read_scalar(node, hint, problems)
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(node, cast(type, hint), problems)
    if origin is tuple:
        return _read_tuple(node, get_args(hint), problems)
    if origin is Mapping:
        return _read_mapping(node, get_args(hint)[1], problems)
    raise TypeError(f"the strict loader does not know the type {hint}")


def _read_optional(node: Node, hint: Any, problems: list[str]) -> object:
    inner = [kind for kind in get_args(hint) if kind is not NoneType]
    if len(inner) == 2 and inner[0] is int and dataclasses.is_dataclass(inner[1]):
        return _read(node, inner[isinstance(node, Entries)], problems)
    if len(inner) != 1 or NoneType not in get_args(hint):
        raise TypeError(
            f"the strict loader knows no union but X | None and int | dataclass, got {hint}"
        )
    if isinstance(node, Scalar) and node.value is None:
        return None
    return _read(node, inner[0], problems)


def _read_literal(node: Node, known: tuple[object, ...], problems: list[str]) -> object:
    if isinstance(node, Scalar) and node.value in known:
        return node.value
    names = ", ".join(repr(value) for value in known)
    hint = ""
    if isinstance(node, Scalar) and isinstance(node.value, str):
        close = difflib.get_close_matches(node.value, [str(value) for value in known], n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
    return _wrong(node, f"one of {names}", problems, hint)


def _read_scalar(node: Node, kind: type, problems: list[str]) -> object:
    value = node.value if isinstance(node, Scalar) else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        return _wrong(node, "a finite number (float)", problems)
    if type(value) is kind:
        return value
    quotes = kind is str and value is not None
    return _wrong(node, _EXPECTED[kind], problems, "; put it in quotes" if quotes else "")


def _read_tuple(node: Node, kinds: tuple[Any, ...], problems: list[str]) -> object:
    if not isinstance(node, Items):
        return _wrong(node, "a list", problems)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(node.items)
    if len(node.items) != len(kinds):
        return _wrong(node, f"a list of {len(kinds)}", problems)
    values = [_read(item, kind, problems) for item, kind in zip(node.items, kinds, strict=True)]
    return _INVALID if any(value is _INVALID for value in values) else tuple(values)


def _read_mapping(node: Node, kind: Any, problems: list[str]) -> object:
    if not isinstance(node, Entries):
        return _wrong(node, "a mapping", problems)
    values = {key: _read(value, kind, problems) for key, value in node.entries.items()}
    return _INVALID if any(value is _INVALID for value in values.values()) else values


def _read_dataclass(node: Node, kind: type, problems: list[str]) -> object:
    fields = [field for field in dataclasses.fields(kind) if field.init]
    names = [field.name for field in fields]
    if not isinstance(node, Entries):
        return _wrong(node, f"a mapping with the keys {', '.join(names)}", problems)
    hints = get_type_hints(kind)
    num_before = len(problems)
    for key, value in node.entries.items():
        if key not in names:
            problems.append(value.place.says(f"unknown key{nearest(key, names)}"))
    values: dict[str, object] = {}
    for field in fields:
        if field.name in node.entries:
            values[field.name] = _read(node.entries[field.name], hints[field.name], problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            place = Place(node.place.source, under(node.place.path, field.name))
            problems.append(place.says("missing required key"))
    if len(problems) > num_before:
        return _INVALID
    try:
        return cast(object, kind(**values))
    except ValueError as error:
        problems.append(node.place.says(str(error)))
        return _INVALID


def _wrong(node: Node, expected: str, problems: list[str], hint: str = "") -> _Invalid:
    problems.append(node.place.says(f"expected {expected}, found {_found(node)}{hint}"))
    return _INVALID


def _found(node: Node) -> str:
    if isinstance(node, Items):
        return f"a list of {len(node.items)}"
    if isinstance(node, Entries):
        return "a mapping"
    if node.value is None:
        return "nothing (null)"
    return f"{node.value!r} ({type(node.value).__name__})"
