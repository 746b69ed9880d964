"""The supply of groups: keeps every slot of the feed filled and hands groups out in order.

Owns the calls under way to the environment workers and what becomes of broken groups. What is done
with a group is the loop's part.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import ray

from manta.actors.lanes import Admission, Broken
from manta.envs.packing import Block
from manta.envs.records import GroupId, GroupSummary
from manta.orchestrator.feed import Feed, FeedState
from manta.orchestrator.pools import EnvironmentPool

BlockRef: TypeAlias = "ray.ObjectRef[Block]"

MAX_ATTEMPTS = 3
"""In one life of the driver: attempts that a stopped run cut short are no fault of the group."""
MAX_DROPPED_IN_A_ROW = 32
"""Groups lost for good with none made in between: then it is not the groups."""


class NothingIsMade(RuntimeError):
    """Every group breaks: the world is gone, and going on would use up the data."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished group: entry `place` of the block behind `block`."""

    block: BlockRef
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
        self._failures: Counter[tuple[int, int]] = Counter()
        self._dropped_in_a_row = 0

    async def run(self) -> None:
        """Admits whenever slots are free, until cancelled. A worker's bug ends it, and
        NothingIsMade where one group after the other breaks."""
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

    def state(self, step: int) -> FeedState:
        """For a checkpoint at `step`. What broke so far must be in the ledger (see `dropped`): the
        state knows the next attempts only, and nothing of a group dropped for good."""
        assert not self._dropped, f"{len(self._dropped)} broken attempts are not in the ledger"
        return self.feed.state(step)

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
                        self._dropped_in_a_row = 0
                        del self._failures[outcome.id[:2]]
                again = self._retry(broken)
            await self._notify()

    def _retry(self, broken: Sequence[Broken]) -> list[Admission]:
        """Re-admits each broken group, or drops it for good after `MAX_ATTEMPTS` attempts."""
        again = []
        for outcome in broken:
            place = outcome.id[:2]
            self._dropped.append((outcome.id, outcome.reason))
            self._failures[place] += 1
            if self._failures[place] < MAX_ATTEMPTS:
                again.append(self.feed.retry(outcome.id))
                continue
            self.feed.drop(outcome.id)
            del self._failures[place]
            self._dropped_in_a_row += 1
            if self._dropped_in_a_row == MAX_DROPPED_IN_A_ROW:
                raise NothingIsMade(
                    f"the last {MAX_DROPPED_IN_A_ROW} groups broke {MAX_ATTEMPTS} times each and "
                    f"none was made in between; the last one, {outcome.id}: {outcome.reason}"
                )
        return again

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
