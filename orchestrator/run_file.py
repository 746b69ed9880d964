"""How YAML plus overrides becomes a `RunFile`.

Owns the short forms of a run file (`algorithm: grpo`, `env: {name: X, ...options}`, reward
components, blocks at the top that stages inherit; repeats are `manta.orchestrator.repeats`'s),
overrides, the resolved copy, and which keys may change on resume. What does change is
`manta.orchestrator.run_changes`'s, whether the parts fit together is said in
`manta.orchestrator.cross_check`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

from manta.algorithms.catalogue import OPTIONAL
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.written_keys import Chosen, without_effect
from manta.envs.records import Json
from manta.orchestrator import strict, uri_credentials, yaml_tree
from manta.orchestrator.config import (
    ComponentConfig,
    EnvConfig,
    EvaluateConfig,
    RewardConfig,
    RunFile,
)
from manta.orchestrator.repeats import is_group, way_into_group, written_out
from manta.orchestrator.strict import RunFileError
from manta.orchestrator.yaml_tree import Entries, Items, Node, Place, Scalar

__all__ = ["RunFileError", "dump", "fingerprint", "load"]

INHERITED: Mapping[str, type] = {
    "env": EnvConfig,
    "reward": RewardConfig,
    "evaluate": EvaluateConfig,
}
"""Blocks that may stand at the top of a run file; a stage without its own takes the whole block."""

_INHERITED_BY: Mapping[str, Collection[str]] = {"annotate": ("env", "reward"), "merge": ()}
"""By kind of stage, where it is not all of them."""

_MAY_CHANGE = re.compile(
    r"run\.(max_hours|deadline_minutes|dir|max_restarts|cluster|variables(\[\d+\])?)"
    r"|(track|publish|mismatch_guard|health)\..*"
    r"|checkpoint\.(every_steps|keep|keep_best|best_by)"
    r"|(rollout|learner|reference|environment|reward_workers)\.(workers(\.\w+)?|threads)"
    r"|learner\.(devices|max_restarts)"
    r"|scorers\.[^.]+\.(workers|threads|deadline_seconds)"
    r"|rollout\.(placement|standby|queue_rows|adaptive_rows|progress_seconds)"
    r"|learner\.(backend|fsdp\.(checkpoint_activations|offload)|deepspeed\..*)"
)
_MAY_GROW = re.compile(r"stages\[\d+\]\.steps")

Flat: TypeAlias = dict[str, "bool | int | float | str | None"]


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunFile:
    """The run file at `path` with `key.sub=value` overrides applied.

    Values of overrides are YAML; list items are named by index or by their `name`
    (`stages.rl.steps=5`). Overrides outside `stages` apply first, then stages inherit, then the
    overrides of stages apply, each kind in the order given. Raises RunFileError with every problem
    found.
    """
    problems: list[str] = []
    root = _short_forms(yaml_tree.parse(_text(path), str(path), problems))
    if isinstance(root, Scalar) and root.value is None and not problems:
        problems.append(f"{path}: the run file is empty")
    if not isinstance(root, Entries):
        raise RunFileError(problems or [root.place.says("expected a mapping at the top")])
    for_stages = [text for text in overrides if re.match(r"stages\b", text)]
    for text in overrides:
        if text not in for_stages:
            root = _override(root, text, problems)
    root = _inherit(root)
    for text in for_stages:
        root = _override(root, text, problems)
    root = _written_out(_inherit(root), problems)
    problems += uri_credentials.problems(root)
    run_file = strict.read(_expand(root, problems), RunFile, problems)
    if problems or run_file is None:
        raise RunFileError([uri_credentials.blackened(problem) for problem in problems])
    return run_file


def dump(run_file: RunFile) -> str:
    """`run_file` resolved, as YAML that `load` reads back as an equal tree."""
    return yaml_tree.dump(plain(run_file))


def resolved(run_file: RunFile) -> dict[str, Json]:
    """`run_file` as plain values, for a tracker."""
    return {
        field.name: plain(getattr(run_file, field.name)) for field in dataclasses.fields(run_file)
    }


def fingerprint(run_file: RunFile) -> str:
    """SHA-256 over everything that may not change when a run is resumed.

    May change: `run.max_hours`, `run.deadline_minutes`, `run.dir`, `run.cluster`,
    `run.variables`, `track`, `checkpoint` but for its `path`, `publish`, `mismatch_guard`,
    `health`, `steps` of a stage (it may only grow, see `manta.orchestrator.run_changes`), worker
    counts and threads, the learner's backend (all read one another's checkpoints).
    """
    fixed = {
        path: value
        for path, value in flat(plain(run_file)).items()
        if not _MAY_CHANGE.fullmatch(path) and not _MAY_GROW.fullmatch(path)
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def may_change(key: str) -> bool:
    """Whether the value of `key` (of no stage) may be another one when a run is resumed."""
    return _MAY_CHANGE.fullmatch(key) is not None


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFileError([f"{path}: there is no such run file"]) from None
    except OSError as error:
        raise RunFileError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise RunFileError([f"{path}: is not UTF-8 text: {error.reason}"]) from error


def _override(root: Entries, text: str, problems: list[str]) -> Entries:
    """`root` with one override applied; where that fails, as it was."""
    name = f"override '{text}'"
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        problems.append(f"{name}: write it as key.sub=value")
        return root

    parts = way_into_group(root.entries.get("stages"), parts)

    def build(path: str) -> Node:
        node = yaml_tree.parse(value, name, problems, path=path, with_lines=False)
        return dataclasses.replace(node, place=Place(name, path))

    num_before = len(problems)
    try:
        changed = yaml_tree.put(root, parts, build)
    except ValueError as error:
        problems.append(f"{name}: {error}")
    if len(problems) > num_before:
        return root
    return cast(Entries, _short_forms(changed))


def _short_forms(root: Node) -> Node:
    """Text where a mapping is meant becomes the mapping: `algorithm: grpo`, `env: arithmetic`."""
    if not isinstance(root, Entries):
        return root
    entries = {key: _short_form(key, value) for key, value in root.entries.items()}
    stages = entries.get("stages")
    if isinstance(stages, Items):
        entries["stages"] = dataclasses.replace(
            stages, items=tuple(_short_forms(stage) for stage in stages.items)
        )
    return Entries(root.place, entries)


def _short_form(key: str, node: Node) -> Node:
    if key in ("algorithm", "env") and isinstance(node, Scalar) and isinstance(node.value, str):
        return Entries(node.place, {"name": node})
    if key == "algorithm" and isinstance(node, Entries):
        filters = node.entries.get("filters")
        if isinstance(filters, Items):
            filters = dataclasses.replace(filters, items=tuple(map(_named, filters.items)))
            return Entries(node.place, {**node.entries, "filters": filters})
    if key == "reward" and isinstance(node, Entries):
        components = node.entries.get("components")
        if isinstance(components, Entries):
            named = {key: _component(key, value) for key, value in components.entries.items()}
            components = Entries(components.place, named)
            return Entries(node.place, {**node.entries, "components": components})
    return node


def _named(node: Node) -> Node:
    """`zero_variance` becomes a mapping with `name`."""
    is_text = isinstance(node, Scalar) and isinstance(node.value, str)
    return Entries(node.place, {"name": node}) if is_text else node


def _component(key: str, node: Node) -> Node:
    """`correct: exact`, `correct: {}` and `correct:` all become a mapping with `reward`."""
    if isinstance(node, Scalar) and (node.value is None or isinstance(node.value, str)):
        return Entries(node.place, {"reward": Scalar(node.place, node.value or key)})
    if isinstance(node, Entries) and "reward" not in node.entries:
        return Entries(node.place, {"reward": Scalar(node.place, key), **node.entries})
    return node


def _inherit(root: Entries) -> Entries:
    """Stages take the blocks at the top that they do not have (null is having none)."""
    stages = root.entries.get("stages")
    if not isinstance(stages, Items):
        return root
    blocks = {key: root.entries[key] for key in INHERITED if key in root.entries}
    heirs = dataclasses.replace(stages, items=tuple(_heir(item, blocks) for item in stages.items))
    return Entries(root.place, {**root.entries, "stages": heirs})


def _heir(stage: Node, blocks: Mapping[str, Node]) -> Node:
    if not isinstance(stage, Entries):
        return stage
    if is_group(stage):
        members = stage.entries["stages"]
        if isinstance(members, Items):
            heirs = tuple(_heir(member, blocks) for member in members.items)
            members = dataclasses.replace(members, items=heirs)
        return Entries(stage.place, {**stage.entries, "stages": members})
    kind = stage.entries.get("kind")
    name = kind.value if isinstance(kind, Scalar) else None
    keys = _INHERITED_BY.get(name, INHERITED) if isinstance(name, str) else INHERITED
    taken = {key: block for key, block in blocks.items() if key in keys}
    return Entries(stage.place, {**taken, **stage.entries})


def _written_out(root: Entries, problems: list[str]) -> Entries:
    """Every repeat a stage of its own."""
    stages = root.entries.get("stages")
    if not isinstance(stages, Items):
        return root
    return Entries(root.place, {**root.entries, "stages": written_out(stages, problems)})


def _expand(root: Entries, problems: list[str]) -> Entries:
    """Presets filled in, options gathered; the inherited blocks at the top checked and removed."""
    entries = {key: value for key, value in root.entries.items() if key not in INHERITED}
    for key, kind in INHERITED.items():
        top = root.entries.get(key)
        if top is not None and not (isinstance(top, Scalar) and top.value is None):
            strict.read(_long_form(key, top, problems), kind, problems)
    stages = entries.get("stages")
    if isinstance(stages, Items):
        items = tuple(
            Entries(
                stage.place,
                {key: _long_form(key, node, problems) for key, node in stage.entries.items()},
            )
            if isinstance(stage, Entries)
            else stage
            for stage in stages.items
        )
        entries["stages"] = dataclasses.replace(stages, items=items)
    return Entries(root.place, entries)


def _long_form(key: str, node: Node, problems: list[str]) -> Node:
    if not isinstance(node, Entries):
        return node
    if key == "algorithm":
        return _over_preset(node, problems)
    if key == "env":
        return _gather_options(node, "name", problems)
    components = node.entries.get("components")
    if key == "reward" and isinstance(components, Entries):
        named = {
            name: _gather_options(component, "reward", problems)
            for name, component in components.entries.items()
        }
        components = Entries(components.place, named)
        return Entries(node.place, {**node.entries, "components": components})
    return node


def _over_preset(node: Entries, problems: list[str]) -> Node:
    """The preset's settings with the given ones laid over them."""
    name = node.entries.get("name")
    if not isinstance(name, Scalar) or not isinstance(name.value, str):
        return node
    if name.value not in PRESETS:
        hint = strict.nearest(name.value, PRESETS)
        problems.append(name.place.says(f"unknown algorithm '{name.value}'{hint}"))
        return node
    preset = plain(PRESETS[name.value])
    assert isinstance(preset, dict)
    merged = _overlay(yaml_tree.planted(preset, node.place), node)
    assert isinstance(merged, Entries)
    problems += _written_for_nothing(node, merged, preset)
    return merged


def _written_for_nothing(node: Entries, merged: Entries, preset: Mapping[str, Json]) -> list[str]:
    """The keys of an algorithm's block `node` that have no effect. Those of another value than the
    preset's and the default are told where settings are checked (`contradictions.check`)."""
    values = {key: each.value for key, each in merged.entries.items() if isinstance(each, Scalar)}
    chosen = Chosen(values.get("advantage"), values.get("loss"), values.get("aggregation"))
    default = plain(AlgorithmSettings(""))
    assert isinstance(default, dict)
    return [
        node.entries[key].place.says(f"has no effect here ({why}): remove it")
        for key, why in without_effect(node.entries, chosen)
        if key not in OPTIONAL or (key in values and values[key] in (preset[key], default[key]))
    ]


def _overlay(under: Node, over: Node) -> Node:
    if not isinstance(under, Entries) or not isinstance(over, Entries):
        return over
    merged = {
        key: _overlay(under.entries[key], value) if key in under.entries else value
        for key, value in over.entries.items()
    }
    return Entries(over.place, {**under.entries, **merged})


def _gather_options(node: Node, own: str, problems: list[str]) -> Node:
    """All keys but `own` become `options`."""
    if not isinstance(node, Entries):
        return node
    options = {key: value for key, value in node.entries.items() if key != own}
    if "options" in options:
        place = options["options"].place
        problems.append(place.says(f"unknown key; write options beside '{own}', not below"))
    kept = {own: node.entries[own]} if own in node.entries else {}
    place = Place(node.place.source, node.place.path)
    return Entries(node.place, {**kept, "options": Entries(place, options)})


def plain(value: object) -> Json:
    """Configuration as YAML values, in the forms that `load` takes."""
    if isinstance(value, EnvConfig):
        return {"name": value.name, **value.options}
    if isinstance(value, ComponentConfig):
        return {"reward": value.reward, **value.options}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str)
    return value


def flat(value: Json, path: str = "") -> Flat:
    """One entry per leaf: `stages[1].algorithm.clip_high -> 0.2`; empty containers are leaves."""
    if isinstance(value, dict) and value:
        parts = [(yaml_tree.under(path, key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and value:
        parts = [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    elif isinstance(value, dict | list):
        return {path: str(value)}
    else:
        return {path: value}
    found: Flat = {}
    for inner_path, inner in parts:
        found.update(flat(inner, inner_path))
    return found
