"""The log of steps: what learner ranks have to do, what they have said, and what that settles.

A step is finished once all ranks of one group have reported it; what they said then stays said. A
group that takes the place of another steps again on what the log still has, quietly: finished steps
are neither handed over nor published a second time, and the one that was in progress is done in
full. A plain object; the shell is `manta.actors.mailbox`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.muster import Heartbeat, Member, Muster
from manta.actors.step_work import Adopt, Fall, Saved, StartOrder, StepReport, StepWork, Stop
from manta.actors.vitals import LifeSign


class Superseded(RuntimeError):
    """Another learner group has taken over: this rank is of the one before."""


class StepsForgotten(RuntimeError):
    """Steps that a group would have to replay are no more."""


class StepLog:
    """Entries by step, with reports; reads wait until there is something to read."""

    def __init__(self, order: StartOrder) -> None:
        self._order = order
        self._group: str | None = None
        self._world_size: int | None = None
        self._muster = Muster()
        self._falls: list[Fall] = []
        self._work: dict[int, StepWork] = {}
        self._forgotten = order.step
        self._covered = order.step - 1
        self._finished = order.step - 1
        self._passed: dict[int, int] = {}
        self._reports: dict[int, dict[int, StepReport]] = {}
        self._results: dict[int, dict[int, StepReport]] = {}
        self._saved: dict[int, dict[int, Saved]] = {}
        self._words: dict[int, tuple[Saved, ...]] = {}
        self._stop: Stop | None = None
        self._dismissed = -1
        self._order_to_hand_over: HandOver | None = None
        self._handed: dict[int, HandedOver] = {}
        self._adoption: Adopt | None = None
        self._num_adopted = 0
        self._adopted: dict[int, StepReport] = {}
        self._changed = asyncio.Condition()

    # Groups come and go

    async def enlist(self, group: str, world_size: int, member: Member) -> StartOrder:
        """Where `group`, of which `member` is a rank, starts from. An order is for one group: a
        second one that wants it waits for the next order."""
        async with self._changed:
            if self._group not in (None, group):
                why = "two learner groups want to start"
                self._falls.append(Fall("outnumbered", (why,), self._finished))
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self._group in (None, group))
            self._group, self._world_size = group, world_size
            self._muster.enlist(self._order.incarnation, member)
            return self._order

    async def fell(self, fall: Fall) -> None:
        """A group has ended; the driver learns of it by `fall`."""
        async with self._changed:
            self._falls.append(replace(fall, finished=self._finished))
            self._changed.notify_all()

    async def fall(self, number: int) -> Fall:
        """The fall with that number, counted from 0; waits for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._falls) > number)
            return self._falls[number]

    async def restart(self, order: StartOrder) -> int:
        """The next group starts from `order`; the number of steps that it has to replay.

        What is whole stays: reports of finished steps, and the words of ranks that have all written
        their part of a checkpoint. The rest is said anew.

        Raises StepsForgotten where `order` starts before steps that are no more.
        """
        async with self._changed:
            if order.step < self._forgotten:
                raise StepsForgotten(
                    f"the learner group cannot go on from step {order.step}: the steps up to "
                    f"{self._forgotten} were dropped when a checkpoint covered them"
                )
            is_first = self._finished < self._order.step
            self._order = replace(order, hand_over=is_first)
            self._finished = max(self._finished, order.step - is_first)
            self._group = self._world_size = None
            self._muster.dismiss()
            for said in (self._passed, self._reports, self._saved, self._handed):
                said.clear()
            if self._adoption is not None:
                if self._adoption.is_in(order.step):
                    self._adoption = None
                elif self._adoption.number > self._num_adopted:
                    self._adopted.clear()
            self._changed.notify_all()
            return sum(order.step < step <= self._finished for step in self._work)

    async def started(self, incarnation: int) -> None:
        """Until every rank of that group has said that it is there, and so has read what it was to
        start from; or the group has been replaced."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._is_current(incarnation) or self._is_from_all(self._passed)
            )

    def alive(self, rank: int, incarnation: int, sign: LifeSign | None = None) -> None:
        self._muster.alive(rank, incarnation, sign)

    def heartbeats(self) -> tuple[Heartbeat, ...]:
        return self._muster.heartbeats()

    # What the driver has for the ranks

    async def put(self, work: StepWork) -> None:
        async with self._changed:
            self._work[work.plan.step] = work
            self._changed.notify_all()

    async def stop(self, stop: Stop) -> None:
        async with self._changed:
            self._stop = stop
            self._changed.notify_all()

    async def dismiss(self) -> None:
        """The present group leaves, for another one to go on where it stands: between two steps,
        and with a checkpoint of the last one."""
        async with self._changed:
            self._dismissed = self._order.incarnation
            self._changed.notify_all()

    async def hand_over(self, order: HandOver) -> HandedOver:
        """Has all ranks obey `order`; rank 0's answer, once all have answered."""
        async with self._changed:
            self._order_to_hand_over, self._handed = order, {}
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._is_from_all(self._handed))
            return self._handed[0]

    async def handed(self, number: int, rank: int, answer: HandedOver) -> None:
        async with self._changed:
            order = self._order_to_hand_over
            if order is not None and order.number == number:
                self._handed[rank] = answer
                self._changed.notify_all()

    async def adopt(self, order: Adopt) -> dict[int, StepReport]:
        """Has all ranks obey `order`, between two steps; their reports, by rank."""
        async with self._changed:
            self._adoption, self._adopted = order, {}
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._num_adopted >= order.number)
            return dict(self._adopted)

    async def adopted(self, number: int, rank: int, incarnation: int, report: StepReport) -> None:
        async with self._changed:
            order = self._adoption
            if not self._is_current(incarnation) or order is None or order.number != number:
                return
            self._passed[rank] = order.version.step
            if number > self._num_adopted:
                self._adopted[rank] = report
                if self._is_from_all(self._adopted):
                    self._num_adopted = number
                    self._finished = max(self._finished, order.version.step)
            self._changed.notify_all()

    async def take(
        self, after: int, incarnation: int, handed: int = 0, adopted: int = 0
    ) -> StepWork | HandOver | Adopt | Stop:
        """What to do next, waiting for it: an order to hand over after number `handed`, one to
        adopt weights after number `adopted`, else the first step after `after`.

        Raises Superseded where another incarnation has taken over.
        """
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    not self._is_current(incarnation)
                    or self._dismissed == incarnation
                    or self._stop is not None
                    or self._next(after)
                    or self._next_order(incarnation, handed, adopted)
                )
            )
            if not self._is_current(incarnation):
                raise Superseded(
                    f"learner incarnation {incarnation} is no longer the current one "
                    f"({self._order.incarnation})"
                )
            if self._dismissed == incarnation:
                return Stop()
            order = self._next_order(incarnation, handed, adopted)
            return order or self._next(after) or self._ending(after)

    def _next(self, after: int) -> StepWork | None:
        work = self._work.get(min((s for s in self._work if s > after), default=-1))
        if work is None:
            return None
        step = work.plan.step
        hand_over = work.hand_over and step > self._finished
        save_to = None if self._is_written(step) else work.save_to
        if (hand_over, save_to) == (work.hand_over, work.save_to):
            return work
        return replace(work, hand_over=hand_over, save_to=save_to)

    def _next_order(self, incarnation: int, handed: int, adopted: int) -> HandOver | Adopt | None:
        order, adoption = self._order_to_hand_over, self._adoption
        if order is not None and order.is_for(incarnation, handed):
            return order
        if adoption is None or adoption.number <= adopted:
            return None
        if adoption.number > self._num_adopted:
            return adoption
        save_to = None if self._is_written(adoption.version.step) else adoption.save_to
        return replace(adoption, hand_over=False, save_to=save_to)

    def _ending(self, after: int) -> Stop:
        assert self._stop is not None
        return Stop() if self._is_written(after) else self._stop

    def _is_written(self, step: int) -> bool:
        """Has every rank of a group said what it wrote of the checkpoint of `step`? Its files are
        then as their hashes say, and nobody writes them again."""
        return step in self._words or step <= self._covered

    # What the ranks have said

    async def report(self, step: int, rank: int, incarnation: int, report: StepReport) -> None:
        """A report of a rank that has been replaced does not count, nor one of a finished step."""
        async with self._changed:
            if not self._is_current(incarnation):
                return
            self._passed[rank] = step
            if step > self._finished:
                reports = self._reports.setdefault(step, {})
                reports[rank] = report
                if self._is_from_all(reports):
                    self._results[step] = self._reports.pop(step)
                    self._finished = step
            self._trim()
            self._changed.notify_all()

    async def result(self, step: int) -> dict[int, StepReport]:
        """All ranks' reports of `step`, by rank; waits for the last one."""
        async with self._changed:
            await self._changed.wait_for(lambda: step in self._results)
            return dict(sorted(self._results[step].items()))

    async def saved(self, step: int, rank: int, incarnation: int, saved: Saved) -> None:
        async with self._changed:
            if not self._is_current(incarnation) or self._is_written(step):
                return
            words = self._saved.setdefault(step, {})
            words[rank] = saved
            if self._is_from_all(words):
                self._words[step] = tuple(words[rank] for rank in self._ranks())
                del self._saved[step]
            self._changed.notify_all()

    async def all_saved(self, step: int) -> tuple[Saved, ...]:
        """What the ranks have written of the checkpoint of `step`; waits for the last one."""
        async with self._changed:
            await self._changed.wait_for(lambda: step in self._words)
            return self._words[step]

    def forget(self, step: int) -> None:
        """A committed checkpoint covers what there is up to `step`. Steps that the present group,
        which may have started from an older one, has yet to pass stay until then."""
        self._covered = max(self._covered, step)
        for said in (self._results, self._reports, self._saved, self._words):
            for old in [s for s in said if s <= step]:
                del said[old]
        self._trim()

    def _trim(self) -> None:
        passed = [self._passed.get(rank, self._order.step) for rank in self._ranks()]
        limit = min(self._covered, *passed) if passed else min(self._covered, self._order.step)
        for step in [s for s in self._work if s <= limit]:
            del self._work[step]
            self._forgotten = max(self._forgotten, step)
        adoption = self._adoption
        if adoption is not None and adoption.version.step < limit:
            self._adoption = None

    def _is_current(self, incarnation: int) -> bool:
        return incarnation == self._order.incarnation

    def _is_from_all(self, answers: Mapping[int, object]) -> bool:
        return bool(self._ranks()) and answers.keys() >= set(self._ranks())

    def _ranks(self) -> range:
        """Empty before the first one enlisted."""
        return range(self._world_size or 0)
