"""Stages that a run file repeats, written out: `NAME@1` to `NAME@K`.

Owns the two forms, `repeat: K` of a stage and `{repeat: K, stages: [...]}` around several, and how
a key of a stage inside of them is found. What a stage may hold is not its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from manta.orchestrator.strict import nearest
from manta.orchestrator.yaml_tree import Entries, Items, Node, Scalar

_REPEAT, _STAGES, _NAME = "repeat", "stages", "name"


def written_out(stages: Items, problems: list[str]) -> Items:
    """`stages` without repeats. What is wrong with one is appended to `problems`."""
    items: list[Node] = []
    for item in stages.items:
        items += _repeats(item, problems)
    return replace(stages, items=tuple(items))


def is_group(node: Node) -> bool:
    """Is it a list item that stands for several stages?"""
    return isinstance(node, Entries) and _STAGES in node.entries


def way_into_group(stages: Node | None, parts: Sequence[str]) -> list[str]:
    """The way `parts` from the top of a run file (`stages`, `rl`, `steps`), led through the group
    that the stage stands in, if it does."""
    if not isinstance(stages, Items) or len(parts) < 2 or parts[0] != _STAGES:
        return list(parts)
    if parts[1] in [_name_of(item) for item in stages.items]:
        return list(parts)
    for index, item in enumerate(stages.items):
        inner = item.entries.get(_STAGES) if isinstance(item, Entries) else None
        if isinstance(inner, Items) and parts[1] in [_name_of(each) for each in inner.items]:
            return [_STAGES, str(index), _STAGES, *parts[1:]]
    return list(parts)


def _repeats(item: Node, problems: list[str]) -> Iterator[Node]:
    if not isinstance(item, Entries) or not (is_group(item) or _REPEAT in item.entries):
        yield item
        return
    times = _times(item, problems)
    if not is_group(item):
        alone = {key: node for key, node in item.entries.items() if key != _REPEAT}
        inner: tuple[Node, ...] = (Entries(item.place, alone),)
        if isinstance(item.entries[_REPEAT], Scalar) and _value(item.entries[_REPEAT]) is None:
            yield inner[0]
            return
    else:
        inner = _members(item, problems)
    for repeat in range(1, times + 1):
        for stage in inner:
            yield _named(stage, repeat)


def _members(item: Entries, problems: list[str]) -> tuple[Node, ...]:
    for key, node in item.entries.items():
        if key not in (_REPEAT, _STAGES):
            hint = nearest(key, (_REPEAT, _STAGES))
            problems.append(node.place.says(f"unknown key of repeated stages{hint}"))
    stages = item.entries[_STAGES]
    if not isinstance(stages, Items) or not stages.items:
        problems.append(stages.place.says("list the stages that are repeated"))
        return ()
    for stage in stages.items:
        if isinstance(stage, Entries) and (_REPEAT in stage.entries or is_group(stage)):
            problems.append(
                stage.place.says(
                    "a repeat inside a repeat is not supported: write the inner one out"
                )
            )
    return stages.items


def _times(item: Entries, problems: list[str]) -> int:
    node = item.entries.get(_REPEAT)
    if node is None:
        problems.append(
            item.place.says(f"a list of stages in a list needs `{_REPEAT}: K` beside it")
        )
        return 0
    value = _value(node)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        if value is None and not is_group(item):
            return 0
        problems.append(node.place.says("expected how many times, a whole number from 1 on"))
        return 0
    return value


def _named(stage: Node, repeat: int) -> Node:
    name = _name_of(stage)
    if not isinstance(stage, Entries) or name is None:
        return stage
    named = Scalar(stage.entries[_NAME].place, f"{name}@{repeat}")
    return Entries(stage.place, {**stage.entries, _NAME: named})


def _name_of(item: Node) -> str | None:
    name = item.entries.get(_NAME) if isinstance(item, Entries) else None
    return name.value if isinstance(name, Scalar) and isinstance(name.value, str) else None


def _value(node: Node) -> object:
    return node.value if isinstance(node, Scalar) else node
