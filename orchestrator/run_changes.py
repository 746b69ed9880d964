"""What a run file changes of the run that it would resume, key by key.

Which keys may change is said in `manta.orchestrator.run_file`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from manta.orchestrator.config import RunFile
from manta.orchestrator.run_file import Flat, flat, may_change, plain, resolved


@dataclass(frozen=True, slots=True)
class Change:
    """A key as overrides name it, and both values as JSON. `problem` is why that keeps a run from
    being resumed; empty where it does not."""

    key: str
    before: str
    after: str
    problem: str = ""

    def __str__(self) -> str:
        problem = f" ({self.problem})" if self.problem else ""
        return f"{self.key}: {self.before} -> {self.after}{problem}"


def changes(old: RunFile, new: RunFile) -> list[Change]:
    """What `new` changes of a run of `old`, in the order of the keys. Stages are told apart by
    their names."""
    names = [[stage.name for stage in each.stages] for each in (old, new)]
    found: list[Change] = []
    if names[0] != names[1]:
        then, now = (json.dumps(each) for each in names)
        found.append(Change("stages", then, now, "may not change"))
    common = set(names[0]) & set(names[1])
    before, after = _by_key(old, common), _by_key(new, common)
    may_grow = {f"stages.{name}.steps" for name in common}
    for key in dict.fromkeys([*before, *after]):
        if key in before and key in after and before[key] == after[key]:
            continue
        problem = "" if may_change(key) else "may not change"
        if key in may_grow:
            is_less = int(after[key] or 0) < int(before[key] or 0)
            problem = "may only grow" if is_less else ""
        found.append(Change(key, _told(before, key), _told(after, key), problem))
    return found


def _by_key(run_file: RunFile, stages: Collection[str]) -> Flat:
    """By key as overrides name it: `stages.rl.algorithm.clip_high -> 0.2`; of these stages."""
    found: Flat = {}
    for key, value in resolved(run_file).items():
        if key != "stages":
            found.update(flat(value, key))
    for stage in run_file.stages:
        if stage.name in stages:
            found.update(flat(plain(stage), f"stages.{stage.name}"))
    return found


def _told(values: Flat, key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"
