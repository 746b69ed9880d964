"""Which rank trains which rows of a step: a pure function of the plan, so every rank computes it.

Another number of ranks replays the same steps, since mini-batches do not depend on it.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from manta.envs.records import StepPlan

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


def shard(plan: StepPlan, world_size: int, updates: int) -> list[list[IntArray]]:
    """Row indices by [update][rank], ascending; every kept row exactly once.

    Within a mini-batch, units go longest first to the rank with the fewest tokens so far (prompts
    counted; ties: lower unit, lower rank). A unit is never split.

    Raises ValueError where `world_size` or `updates` is below 1.
    """
    if world_size < 1:
        raise ValueError(f"the learner group has {world_size} ranks: it needs 1 or more")
    return [_balance(plan, rows, world_size) for rows in mini_batches(plan, updates)]


def _balance(plan: StepPlan, rows: IntArray, world_size: int) -> list[IntArray]:
    members: dict[int, list[int]] = {}
    for row in rows.tolist():
        members.setdefault(int(plan.unit_N[row]), []).append(row)
    cost = {unit: int(plan.lengths_N[inside].sum()) for unit, inside in members.items()}
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for unit in sorted(members, key=lambda unit: (-cost[unit], unit)):
        rank = loads.index(min(loads))
        loads[rank] += cost[unit]
        shares[rank].extend(members[unit])
    return [np.array(sorted(share), np.int64) for share in shares]
