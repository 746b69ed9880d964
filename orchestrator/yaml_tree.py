"""YAML text as a tree in which every value knows where it was written.

Owns parsing (the YAML 1.2 core schema, so that `1e-5` is a number and `no` is text), duplicate
keys, and replacing one value by its dotted path. Does not know which keys a run file may have:
that is `manta.orchestrator.strict`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import yaml

from manta.envs.records import Json

_Resolvers: TypeAlias = dict[str, list[tuple[str, re.Pattern[str]]]]

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "int": (r"^[-+]?[0-9]+$", list("-+0123456789")),
    "float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by the YAML 1.2 core schema; PyYAML's own is 1.1."""

    yaml_implicit_resolvers: _Resolvers = {}  # noqa: RUF012 (declared so by PyYAML)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text."""

    yaml_implicit_resolvers: _Resolvers = {}  # noqa: RUF012 (declared so by PyYAML)

    def ignore_aliases(self, data: object) -> bool:
        return True


for _kind, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


@dataclass(frozen=True, slots=True)
class Place:
    """`source` is `FILE:LINE` or names an override; `path` is the dotted key, empty at the top."""

    source: str
    path: str

    def says(self, problem: str) -> str:
        key = f"key '{self.path}': " if self.path else ""
        return f"{self.source}: {key}{problem}"


@dataclass(frozen=True, slots=True)
class Scalar:
    place: Place
    value: bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Items:
    place: Place
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    place: Place
    entries: Mapping[str, Node]


Node: TypeAlias = Scalar | Items | Entries


class _Converter:
    """From PyYAML's nodes to ours; problems are collected, not raised."""

    def __init__(self, name: str, *, with_lines: bool, problems: list[str]) -> None:
        self._name = name
        self._with_lines = with_lines
        self._problems = problems
        self._open: set[int] = set()

    def place(self, node: yaml.Node, path: str) -> Place:
        line = f":{node.start_mark.line + 1}" if self._with_lines else ""
        return Place(f"{self._name}{line}", path)

    def convert(self, node: yaml.Node, place: Place) -> Node:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        if id(node) in self._open:
            self._problems.append(place.says("an alias may not contain itself"))
            return Scalar(place, None)
        self._open.add(id(node))
        converted: Node
        if isinstance(node, yaml.SequenceNode):
            converted = Items(
                place,
                tuple(
                    self.convert(item, self.place(item, f"{place.path}[{index}]"))
                    for index, item in enumerate(node.value)
                ),
            )
        else:
            assert isinstance(node, yaml.MappingNode)
            converted = Entries(place, self._entries(node, place))
        self._open.discard(id(node))
        return converted

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Scalar:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "str":
                return Scalar(place, text)
            if kind == "null":
                return Scalar(place, None)
            if kind == "bool":
                return Scalar(place, text.lower() == "true")
            if kind == "int":
                return Scalar(place, int(text))
            if kind == "float":
                return Scalar(place, float(re.sub(r"\.(?=inf|nan)", "", text.lower())))
        except ValueError:
            self._problems.append(place.says(f"{text!r} is no {kind}"))
        else:
            self._problems.append(place.says(f"the YAML tag {node.tag!r} is not supported"))
        return Scalar(place, None)

    def _entries(self, node: yaml.MappingNode, parent: Place) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or key == "<<":
                where = self.place(key_node, parent.path)
                self._problems.append(
                    where.says("merge keys (<<) are not supported, write the keys out")
                    if key == "<<"
                    else where.says("a key must be plain text")
                )
                continue
            place = self.place(key_node, under(parent.path, key))
            if key in entries:
                first = entries[key].place.source.rpartition(":")[2]
                told = f"given twice (first on line {first})" if self._with_lines else "given twice"
                self._problems.append(place.says(told))
                continue
            entries[key] = self.convert(value_node, place)
        return entries


def under(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def parse(
    text: str, name: str, problems: list[str], *, path: str = "", with_lines: bool = True
) -> Node:
    """The tree of `text`; what is wrong with it is appended to `problems`."""
    top = Place(name, path)
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if with_lines and mark is not None else ""
        problems.append(f"{name}{line}: not valid YAML: {error.problem or error.context}")
        return Scalar(top, None)
    except yaml.YAMLError as error:
        problems.append(f"{name}: not valid YAML: {error}")
        return Scalar(top, None)
    if root is None:
        return Scalar(top, None)
    converter = _Converter(name, with_lines=with_lines, problems=problems)
    return converter.convert(root, converter.place(root, path))


def plain(node: Node) -> Json:
    """The values of `node` without their places."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, value in node.entries.items()}


def planted(value: Json, place: Place) -> Node:
    """The tree of plain `value`, as if written at `place`."""
    if isinstance(value, dict):
        return Entries(
            place,
            {
                key: planted(inner, Place(place.source, under(place.path, key)))
                for key, inner in value.items()
            },
        )
    if isinstance(value, list):
        return Items(
            place,
            tuple(
                planted(inner, Place(place.source, f"{place.path}[{index}]"))
                for index, inner in enumerate(value)
            ),
        )
    return Scalar(place, value)


def put(root: Node, parts: Sequence[str], build: Callable[[str], Node]) -> Node:
    """A copy of `root` with the value at `parts` replaced by `build(its full path)`.

    List items are named by index or by their `name`. Missing mappings are made on the way. Raises
    ValueError where the way ends in something that has no such part.
    """
    path = root.place.path
    if not parts:
        return build(path)
    part, rest = parts[0], parts[1:]
    if isinstance(root, Items):
        index = _index(root, part)
        item = put(root.items[index], rest, build)
        return replace(root, items=(*root.items[:index], item, *root.items[index + 1 :]))
    if isinstance(root, Scalar) and root.value is not None:
        raise ValueError(f"'{path}' is {root.value!r}, it has no key '{part}'")
    entries = root.entries if isinstance(root, Entries) else {}
    place = Place(root.place.source, under(path, part))
    child = entries.get(part, Scalar(place, None))
    return Entries(root.place, {**entries, part: put(child, rest, build)})


def _index(node: Items, part: str) -> int:
    if part.isdecimal() and int(part) < len(node.items):
        return int(part)
    names = [_name_of(item) for item in node.items]
    if part in names:
        return names.index(part)
    known = ", ".join(
        str(index) if name is None else f"{index} ({name})" for index, name in enumerate(names)
    )
    raise ValueError(f"'{node.place.path}' has no item '{part}'; it has {known or 'none'}")


def _name_of(item: Node) -> str | None:
    name = item.entries.get("name") if isinstance(item, Entries) else None
    return str(name.value) if isinstance(name, Scalar) else None


def dump(value: Json) -> str:
    """`value` as YAML that `parse` reads back as equal values, keys in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)
