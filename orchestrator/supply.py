"""The supply of groups: keeps every slot of the feed filled and hands groups out in order.

Owns the calls under way to the environment workers and what becomes of broken groups. What is done
with a group is the loop's part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from manta.actors.lanes import Admission, Broken
from manta.actors.mailbox import Block
from manta.envs.records import GroupId, GroupSummary
from manta.orchestrator.feed import Feed
from manta.orchestrator.pools import EnvironmentPool

MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished group: entry `place` of the block behind `block`."""

    block: ray.ObjectRef[Block]
    place: int
    summary: GroupSummary


class Supply:
    """Runs blocks of `groups_per_call` admissions of `lane` on `pool`."""

    def __init__(
        self, feed: Feed[Finished], pool: EnvironmentPool, lane: str, groups_per_call: int
    ) -> None:
        self.feed = feed
        self._pool, self._lane, self._groups_per_call = pool, lane, groups_per_call
        self._changed = asyncio.Condition()
        self._dropped: list[tuple[GroupId, str]] = []

    async def run(self) -> None:
        """Admits whenever slots are free, until cancelled; a worker's bug ends it."""
        async with asyncio.TaskGroup() as calls:
            while True:
                admissions = self.feed.admit()
                for start in range(0, len(admissions), self._groups_per_call):
                    block = admissions[start : start + self._groups_per_call]
                    calls.create_task(self._make(block))
                async with self._changed:
                    await self._changed.wait()

    async def take(self, step: int) -> tuple[GroupId, Finished]:
        """The next group in admission order, consumed for `step`; waits until it is finished."""
        async with self._changed:
            while (taken := self.feed.take(step)) is None:
                await self._changed.wait()
        return taken

    async def free(self, groups: Sequence[GroupId]) -> None:
        """Frees the slots of consumed groups; new tasks are admitted into them."""
        self.feed.free(groups)
        await self._notify()

    def dropped(self) -> list[tuple[GroupId, str]]:
        """Attempts that broke since the last call, each with its reason."""
        dropped, self._dropped = self._dropped, []
        return dropped

    async def _make(self, admissions: Sequence[Admission]) -> None:
        again: list[Admission] = list(admissions)
        while again:
            try:
                block, summary = await self._pool.run_block(self._lane, again)
            except ray.exceptions.RayActorError as error:
                outcomes = [Broken(a.id, f"environment worker lost: {error}") for a in again]
                again = self._retry(outcomes)
            else:
                place = 0
                broken = []
                for outcome in summary.groups:
                    if isinstance(outcome, Broken):
                        broken.append(outcome)
                    else:
                        self.feed.finish(outcome.id, Finished(block, place, outcome))
                        place += 1
                again = self._retry(broken)
            await self._notify()

    def _retry(self, broken: Sequence[Broken]) -> list[Admission]:
        """Re-admits each broken group, or drops it for good after `MAX_ATTEMPTS` attempts."""
        again = []
        for outcome in broken:
            self._dropped.append((outcome.id, outcome.reason))
            if outcome.id.attempt + 1 < MAX_ATTEMPTS:
                again.append(self.feed.retry(outcome.id))
            else:
                self.feed.drop(outcome.id)
        return again

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
