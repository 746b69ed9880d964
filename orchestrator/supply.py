"""The supply of groups: keeps every slot of the feed filled and hands groups out in order.

Owns the calls under way to the environment workers and what becomes of broken groups. What is done
with a group is the loop's part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import ray

from manta.actors.lanes import Admission, BlockSummary, Broken
from manta.envs.packing import Block
from manta.envs.records import GroupId, GroupSummary
from manta.orchestrator.age_policy import NO_LIMIT, AgePolicy
from manta.orchestrator.attempts import Attempts, lost_with
from manta.orchestrator.curriculum import Curriculum
from manta.orchestrator.expected_lengths import ExpectedLengths
from manta.orchestrator.feed import Feed, FeedState
from manta.orchestrator.length_cap import LengthCap

BlockRef: TypeAlias = "ray.ObjectRef[Block]"

MAX_DROPPED_IN_A_ROW = 32
"""Groups lost for good with none made in between: then it is not the groups."""

OVERTAKEN = "overtaken: the step was full before this group was taken"


class NothingIsMade(RuntimeError):
    """Every group breaks: the world is gone, and going on would use up the data."""


class GroupsLost(NothingIsMade):
    """Every one of them went with a worker that was lost: workers of another life may stay."""


class Exhausted(RuntimeError):
    """A feed that ends has nothing more to take."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished group: entry `place` of the block behind `block`."""

    block: BlockRef
    place: int
    summary: GroupSummary


class BlockPool(Protocol):
    """Where groups are made: `EnvironmentPool`, or what stands for it in a simulation."""

    async def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> tuple[BlockRef, BlockSummary]: ...


class Supply:
    """Runs blocks of `groups_per_call` admissions of `lane` on `pool`."""

    def __init__(
        self,
        feed: Feed[Finished],
        pool: BlockPool,
        lane: str,
        groups_per_call: int,
        ages: AgePolicy = NO_LIMIT,
        lengths: ExpectedLengths | None = None,
        cap: LengthCap | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        """`ages` says what is too old to train. With `lengths`, groups that are admitted together
        start longest first; with `cap`, their samples have at most that many tokens. `curriculum`
        is the feed's order, if that follows pass rates."""
        self._ages = ages
        self.cap, self.curriculum = cap, curriculum
        self._to_start: list[Admission] = []
        """Admitted, and not yet asked for."""
        self._aged_at = -1
        """The step for which the age of all that is finished was looked at."""
        self._unaged: list[GroupId] = []
        """What has finished since."""
        self.feed = feed
        self._pool, self._lane, self._groups_per_call = pool, lane, groups_per_call
        self._lengths = lengths
        self._calls: dict[tuple[int, int], asyncio.Task[None]] = {}
        """By place in the order: the call that makes the group there."""
        self._changed = asyncio.Condition()
        self._dropped: list[tuple[GroupId, str]] = []
        self._attempts = Attempts()
        self._dropped_in_a_row: list[Broken] = []

    async def run(self) -> None:
        """Admits whenever slots are free, until cancelled. A worker's bug ends it, and
        NothingIsMade where one group after the other breaks."""
        async with asyncio.TaskGroup() as calls:
            while True:
                admissions = [*self._to_start, *self.feed.admit()]
                self._to_start = []
                if self._lengths is not None:
                    admissions = self._lengths.longest_first(admissions)
                for start in range(0, len(admissions), self._groups_per_call):
                    block = admissions[start : start + self._groups_per_call]
                    call = calls.create_task(self._make(block))
                    self._calls.update((admission.id[:2], call) for admission in block)
                async with self._changed:
                    await self._changed.wait()

    async def take(self, step: int) -> tuple[GroupId, Finished]:
        """The next group in the feed's order, consumed for `step`; waits until it is finished.
        What is finished and too old for `step` is made anew meanwhile.

        Raises Exhausted where a feed that ends has come to its end.
        """
        async with self._changed:
            self._renew(step)
            while (taken := self.feed.take(step)) is None:
                if self.feed.is_exhausted:
                    raise Exhausted
                await self._changed.wait()
                self._renew(step)
        if self.cap is not None:
            self.cap.note(taken[1].summary.num_tokens.tolist())
        return taken

    async def free(self, groups: Sequence[GroupId]) -> None:
        """Frees the slots of consumed groups; new tasks are admitted into them."""
        self.feed.free(groups)
        await self._notify()

    def close(self) -> None:
        """A step is full: groups that the feed lets go are dropped, and engines stop decoding them
        once nobody wants the call that they are part of."""
        overtaken = self.feed.close()
        if self.curriculum is not None:
            # What an epoch begins with must not depend on when `run` wakes up
            self._to_start += self.feed.admit()
        self._dropped += [(group, OVERTAKEN) for group in overtaken]
        ended = {self._calls.pop(group[:2]) for group in overtaken if group[:2] in self._calls}
        for call in ended - set(self._calls.values()):
            call.cancel()

    def settle(self, step: int, taken: Sequence[GroupSummary] = ()) -> None:
        """Everything consumed for steps up to `step` is in the ledger, and weights are live. `step`
        itself consumed `taken`."""
        self.feed.settle(step)
        if self.curriculum is not None:
            self.curriculum.settle(step, taken, self.feed.state(step).open_epochs)
        if self.cap is not None:
            self.cap.turn()

    def dropped(self) -> list[tuple[GroupId, str]]:
        """Attempts that broke or came too late since the last call, each with its reason."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def state(self, step: int) -> FeedState:
        """For a checkpoint at `step`. What broke so far must be in the ledger (see `dropped`): the
        state knows the next attempts only, and nothing of a group dropped for good."""
        assert not self._dropped, f"{len(self._dropped)} broken attempts are not in the ledger"
        state = self.feed.state(step)
        if self.curriculum is not None:
            state = replace(state, curriculum=self.curriculum.state())
        return state if self.cap is None else replace(state, median_length=self.cap.median)

    async def _make(self, admissions: Sequence[Admission]) -> None:
        index = {admission.id[:2]: admission.index for admission in admissions}
        again: list[Admission] = list(admissions)
        while again:
            try:
                block, summary = await self._pool.run_block(self._lane, self._capped(again))
            except ray.exceptions.RayActorError as error:
                again = self._retry(lost_with(again, error))
            else:
                place = 0
                broken = []
                for outcome in summary.groups:
                    if isinstance(outcome, Broken):
                        broken.append(outcome)
                        continue
                    if self.feed.has(outcome.id):
                        self._finish(outcome.id, Finished(block, place, outcome))
                        if self._lengths is not None:
                            lengths = outcome.num_tokens.tolist()
                            self._lengths.note(index[outcome.id[:2]], lengths)
                    place += 1
                again = self._retry(broken)
            await self._notify()

    def _capped(self, admissions: list[Admission]) -> list[Admission]:
        if self.cap is None:
            return admissions
        return [replace(admission, cap=self.cap.tokens) for admission in admissions]

    def _renew(self, step: int) -> None:
        # Asked for at every turn of `take`: with many groups looking at all of them would be felt.
        if not self._ages.drops:
            return
        ready = self.feed.ready() if step != self._aged_at else self.feed.ready_among(self._unaged)
        self._aged_at, self._unaged = step, []
        for group, finished in ready:
            reason = self._ages.why_dropped(step, finished.summary)
            if reason is not None:
                self._dropped.append((group, reason))
                self._to_start.append(self.feed.renew(group))
        if self._to_start:
            self._changed.notify_all()

    def _finish(self, group: GroupId, finished: Finished) -> None:
        self.feed.finish(group, finished)
        if self._ages.drops:
            self._unaged.append(group)
        self._calls.pop(group[:2], None)
        self._dropped_in_a_row = []
        self._attempts.forget(group[:2])

    def _retry(self, broken: Sequence[Broken]) -> list[Admission]:
        """Re-admits each broken group, or drops it for good after so many attempts."""
        again = []
        for outcome in broken:
            place = outcome.id[:2]
            if not self.feed.has(outcome.id):
                continue
            self._dropped.append((outcome.id, outcome.reason))
            if self._attempts.may_retry(outcome):
                again.append(self.feed.retry(outcome.id))
                continue
            self.feed.drop(outcome.id)
            self._calls.pop(place, None)
            self._attempts.forget(place)
            self._dropped_in_a_row.append(outcome)
            if len(self._dropped_in_a_row) == MAX_DROPPED_IN_A_ROW:
                are_lost = all(each.is_lost for each in self._dropped_in_a_row)
                kind = GroupsLost if are_lost else NothingIsMade
                raise kind(
                    f"the last {MAX_DROPPED_IN_A_ROW} groups broke in every attempt and "
                    f"none was made in between; the last one, {outcome.id}: {outcome.reason}"
                )
        return again

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
