"""The mailbox: an indexed log of steps between the driver and the learner ranks.

`take(after, incarnation)` is an idempotent read, so a restarted learner group, of whatever size,
replays the same steps. The plain object `StepLog` holds the state; the shell makes it an actor. The
driver owns the groups that the entries refer to; the mailbox holds references only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from manta.actors.alive import Alive
from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.device_place import DevicePlace
from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.stored_folder import WrittenFile
from manta.actors.weights import Weights
from manta.envs.packing import Block
from manta.envs.records import Float32, StepPlan, Update, WeightVersion

Place = tuple[int, int]
"""Where a group is: the index of its block, and its entry there."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """One step for all ranks. Group g of the plan is entry `place_G[g][1]` of block
    `blocks[place_G[g][0]]`. `learning_rate`, the policy's, already follows the schedule, and so do
    those of `residents`; `hand_over`: the weights go to the store after the step; `save_to`: where
    all ranks bring what a checkpoint of the step needs, and say so with `saved`."""

    stage: str
    plan: StepPlan
    blocks: tuple[ray.ObjectRef[Block], ...]
    place_G: tuple[Place, ...]
    learning_rate: float
    hand_over: bool = True
    save_to: str | None = None
    residents: ResidentRates = NO_RESIDENTS


@dataclass(frozen=True, slots=True)
class Adopt:
    """Other weights in place of those that all ranks have, as `version`, for `stage`, which they
    enter with a fresh optimizer. `number` counts up within a life of the driver; `save_to` is as in
    `StepWork`."""

    number: int
    stage: str
    weights: ray.ObjectRef[Weights]
    version: WeightVersion
    save_to: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """No more steps: ranks leave their loop, after saving to `save_to`."""

    save_to: str | None = None


@dataclass(frozen=True, slots=True)
class StartOrder:
    """What a learner group starts from, in which stage: `restore_from` is the learner's folder of a
    checkpoint, if any."""

    step: int
    incarnation: int
    stage: str
    restore_from: str | None


@dataclass(frozen=True, slots=True)
class StepReport:
    """A rank's answer: the update (weights hash and probe are rank 0's). Its first one, before any
    step, says where it is. In a colocated run one with weights says that it left its device."""

    update: Update
    probe: tuple[Float32, ...]
    timings: Mapping[str, float]
    place: DevicePlace | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """A rank's files of a checkpoint, on disk; or what kept it from writing them."""

    files: tuple[WrittenFile, ...]
    problem: str = ""


class StepLog:
    """Entries by step, with reports; reads wait until there is something to read."""

    def __init__(self, order: StartOrder) -> None:
        self._order = order
        self._work: dict[int, StepWork] = {}
        self._reports: dict[int, dict[int, StepReport]] = {}
        self._saved: dict[int, dict[int, Saved]] = {}
        self._world_size: int | None = None
        self._stop: Stop | None = None
        self._order_to_hand_over: HandOver | None = None
        self._handed: dict[int, HandedOver] = {}
        self._adoption: Adopt | None = None
        self._adopted: dict[int, StepReport] = {}
        self._changed = asyncio.Condition()

    def enlist(self, world_size: int) -> StartOrder:
        self._world_size = world_size
        return self._order

    async def put(self, work: StepWork) -> None:
        async with self._changed:
            self._work[work.plan.step] = work
            self._changed.notify_all()

    async def stop(self, stop: Stop) -> None:
        async with self._changed:
            self._stop = stop
            self._changed.notify_all()

    async def hand_over(self, order: HandOver) -> HandedOver:
        """Has all ranks obey `order`; rank 0's answer, once all have answered."""
        async with self._changed:
            self._order_to_hand_over, self._handed = order, {}
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: bool(self._ranks()) and self._handed.keys() >= set(self._ranks())
            )
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
            await self._changed.wait_for(lambda: self._is_from_all(self._adopted))
            return dict(self._adopted)

    async def adopted(self, number: int, rank: int, report: StepReport) -> None:
        async with self._changed:
            if self._adoption is not None and self._adoption.number == number:
                self._adopted[rank] = report
                self._changed.notify_all()

    async def take(
        self, after: int, incarnation: int, handed: int = 0, adopted: int = 0
    ) -> StepWork | HandOver | Adopt | Stop:
        """What to do next, waiting for it: an order to hand over after number `handed`, one to
        adopt weights after number `adopted`, else the first step after `after`.

        Raises ValueError where another incarnation has taken over.
        """
        if incarnation != self._order.incarnation:
            raise ValueError(
                f"learner incarnation {incarnation} is no longer the current one "
                f"({self._order.incarnation})"
            )
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._stop is not None
                    or self._next(after)
                    or self._next_order(incarnation, handed, adopted)
                )
            )
            order = self._next_order(incarnation, handed, adopted)
            return order or self._next(after) or self._stop or Stop()

    def _next(self, after: int) -> StepWork | None:
        return self._work.get(min((s for s in self._work if s > after), default=-1))

    def _next_order(self, incarnation: int, handed: int, adopted: int) -> HandOver | Adopt | None:
        order, adoption = self._order_to_hand_over, self._adoption
        if order is not None and order.is_for(incarnation, handed):
            return order
        return adoption if adoption is not None and adoption.number > adopted else None

    async def report(self, step: int, rank: int, report: StepReport) -> None:
        async with self._changed:
            self._reports.setdefault(step, {})[rank] = report
            self._changed.notify_all()

    async def result(self, step: int) -> dict[int, StepReport]:
        """All ranks' reports of `step`, by rank; waits for the last one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._all_reported(step))
            return {rank: self._reports[step][rank] for rank in self._ranks()}

    async def saved(self, step: int, rank: int, saved: Saved) -> None:
        async with self._changed:
            self._saved.setdefault(step, {})[rank] = saved
            self._changed.notify_all()

    async def all_saved(self, step: int) -> tuple[Saved, ...]:
        """What the ranks have written of the checkpoint of `step`; waits for the last one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_from_all(self._saved.get(step, {})))
            return tuple(self._saved[step][rank] for rank in self._ranks())

    def _all_reported(self, step: int) -> bool:
        return self._is_from_all(self._reports.get(step, {}))

    def _is_from_all(self, answers: Mapping[int, object]) -> bool:
        """A group that a larger one left answers behind for waits for its own ranks only."""
        return bool(self._ranks()) and answers.keys() >= set(self._ranks())

    def _ranks(self) -> range:
        """Empty before the first one enlisted."""
        return range(self._world_size or 0)

    def forget(self, step: int) -> None:
        """Drops what there is up to `step`: a committed checkpoint covers it."""
        for log in (self._work, self._reports, self._saved):
            for old in [s for s in log if s <= step]:
                del log[old]


class Mailbox(Alive):
    """The shell of `StepLog`."""

    def __init__(self, order: StartOrder) -> None:
        self._log = StepLog(order)

    async def enlist(self, world_size: int) -> StartOrder:
        return self._log.enlist(world_size)

    async def put(self, work: StepWork) -> None:
        await self._log.put(work)

    async def stop(self, stop: Stop) -> None:
        await self._log.stop(stop)

    async def hand_over(self, order: HandOver) -> HandedOver:
        return await self._log.hand_over(order)

    async def handed(self, number: int, rank: int, answer: HandedOver) -> None:
        await self._log.handed(number, rank, answer)

    async def adopt(self, order: Adopt) -> dict[int, StepReport]:
        return await self._log.adopt(order)

    async def adopted(self, number: int, rank: int, report: StepReport) -> None:
        await self._log.adopted(number, rank, report)

    async def take(
        self, after: int, incarnation: int, handed: int = 0, adopted: int = 0
    ) -> StepWork | HandOver | Adopt | Stop:
        return await self._log.take(after, incarnation, handed, adopted)

    async def report(self, step: int, rank: int, report: StepReport) -> None:
        await self._log.report(step, rank, report)

    async def result(self, step: int) -> dict[int, StepReport]:
        return await self._log.result(step)

    async def saved(self, step: int, rank: int, saved: Saved) -> None:
        await self._log.saved(step, rank, saved)

    async def all_saved(self, step: int) -> tuple[Saved, ...]:
        return await self._log.all_saved(step)

    async def forget(self, step: int) -> None:
        self._log.forget(step)
