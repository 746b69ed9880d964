"""Which rank trains which rows of a step: a pure function of the plan, so every rank computes it.

Another number of ranks replays the same steps, since mini-batches do not depend on it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from manta.actors.balance import balanced
from manta.envs.step_records import StepPlan

IntArray: TypeAlias = npt.NDArray[np.int64]


def kept_rows(plan: StepPlan) -> IntArray:
    """Rows that train: those whose `keep` coefficient is above 0 (all, where there is none)."""
    keep_N = plan.coefficients.get("keep")
    if keep_N is None:
        return np.arange(len(plan.group_N))
    return np.flatnonzero(keep_N > 0)


def mini_batches(plan: StepPlan, updates: int) -> list[IntArray]:
    """The kept rows of each of `updates` consecutive mini-batches, ascending.

    The groups with kept rows are cut in plan order into parts as equal as can be (the first ones
    get one more); a unit goes where its first row's group goes. With more updates than groups the
    last mini-batches are empty.
    """
    if updates < 1:
        raise ValueError(f"updates per step is {updates}: it must be 1 or more")
    kept = kept_rows(plan)
    units, first = np.unique(plan.unit_N[kept], return_index=True)
    group_of_unit = dict(zip(units.tolist(), plan.group_N[kept[first]].tolist(), strict=True))
    groups = sorted(set(group_of_unit.values()))
    part_of_group = {
        group: part
        for part, members in enumerate(np.array_split(np.array(groups, np.int64), updates))
        for group in members.tolist()
    }
    part_N = [part_of_group[group_of_unit[unit]] for unit in plan.unit_N[kept].tolist()]
    return [kept[np.array(part_N, np.int64) == part] for part in range(updates)]


def shard(
    plan: StepPlan, world_size: int, updates: int, attention_tokens: int | None = None
) -> list[list[IntArray]]:
    """Row indices by [update][rank], ascending; every kept row exactly once.

    Within a mini-batch units are shared out so that the rank with the most work has as little as
    can be (`manta.actors.balance`); ranks need not get equally many. A row of L tokens, prompt
    counted, is L * (1 + L / attention_tokens) of work: attention over `attention_tokens` tokens
    costs a token as much as everything else; None leaves it out. A unit is never split.

    Raises ValueError where `world_size` or `updates` is below 1.
    """
    if world_size < 1:
        raise ValueError(f"the learner group has {world_size} ranks: it needs 1 or more")
    lengths = plan.lengths_N.tolist()
    work = [length * (length + attention_tokens if attention_tokens else 1) for length in lengths]
    return [_balance(plan, rows, work, world_size) for rows in mini_batches(plan, updates)]


def _balance(plan: StepPlan, rows: IntArray, work: list[int], world_size: int) -> list[IntArray]:
    members: dict[int, list[int]] = {}
    for row in rows.tolist():
        members.setdefault(int(plan.unit_N[row]), []).append(row)
    units = sorted(members)
    costs = [sum(work[row] for row in members[unit]) for unit in units]
    return [
        np.array(sorted(row for index in share for row in members[units[index]]), np.int64)
        for share in balanced(costs, world_size)
    ]
