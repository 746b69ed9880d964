"""Summaries by hand, and an environment pool that does what its script says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from manta.actors.lanes import Admission, BlockSummary, Broken
from manta.envs.records import GroupId, GroupSummary, WeightVersion

Outcome = GroupSummary | Broken | Exception
Script = Callable[[Admission], Outcome]


def summary(
    id: GroupId,
    rewards: Sequence[float] = (0.0, 1.0),
    components: Mapping[str, Sequence[float]] | None = None,
) -> GroupSummary:
    """Sample i has 3 + i tokens, 2 of them trained; the hash names the place, not the attempt."""
    size = len(rewards)
    return GroupSummary(
        id=id,
        task_id=f"task-{id.position}",
        rewards=np.array(rewards, np.float32),
        components={n: np.array(v, np.float32) for n, v in (components or {}).items()},
        num_tokens=np.full(size, 2, np.int32),
        lengths=np.arange(3, 3 + size, dtype=np.int32),
        is_truncated=np.zeros(size, np.bool_),
        oldest=WeightVersion(0, 0),
        newest=WeightVersion(0, 0),
        content_hash=f"hash-{id.epoch}-{id.position}",
        timings={},
    )


class ScriptedPool:
    """`run_block` as the environment pool's; groups finish after `delay` turns of the event loop.

    `calls` holds the ids of every block asked for; the block's reference is its number."""

    def __init__(self, script: Script, delay: Callable[[Admission], int] = lambda _: 0) -> None:
        self.calls: list[list[GroupId]] = []
        self.num_workers = 2
        self._script, self._delay = script, delay

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[str, BlockSummary]:
        number = len(self.calls)
        self.calls.append([admission.id for admission in admissions])
        for _ in range(max(self._delay(admission) for admission in admissions)):
            await asyncio.sleep(0)
        outcomes = [self._script(admission) for admission in admissions]
        groups: list[GroupSummary | Broken] = []
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            groups.append(outcome)
        return f"block-{number}", BlockSummary(tuple(groups))


async def turns(count: int = 50) -> None:
    """Lets everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)
