"""The mailbox: an indexed log of steps between the driver and the learner ranks, as an actor.

`take(after, incarnation)` is an idempotent read, so a restarted learner group, of whatever size,
replays the same steps. The plain object `StepLog` holds the state. The driver owns the groups that
the entries refer to; the mailbox holds references only.
"""

from __future__ import annotations

from manta.actors.alive import Alive
from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.muster import Heartbeat, Member
from manta.actors.step_log import StepLog
from manta.actors.step_work import (
    Adopt,
    Fall,
    Saved,
    StartOrder,
    StepReport,
    StepWork,
    Stop,
)
from manta.actors.vitals import LifeSign


class Mailbox(Alive):
    """The shell of `StepLog`."""

    def __init__(self, order: StartOrder) -> None:
        self._log = StepLog(order)

    async def enlist(self, group: str, world_size: int, member: Member) -> StartOrder:
        return await self._log.enlist(group, world_size, member)

    async def fell(self, fall: Fall) -> None:
        await self._log.fell(fall)

    async def fall(self, number: int) -> Fall:
        return await self._log.fall(number)

    async def restart(self, order: StartOrder) -> int:
        return await self._log.restart(order)

    async def started(self, incarnation: int) -> None:
        await self._log.started(incarnation)

    async def alive(self, rank: int, incarnation: int, sign: LifeSign) -> None:
        self._log.alive(rank, incarnation, sign)

    async def heartbeats(self) -> tuple[Heartbeat, ...]:
        return self._log.heartbeats()

    async def put(self, work: StepWork) -> None:
        await self._log.put(work)

    async def stop(self, stop: Stop) -> None:
        await self._log.stop(stop)

    async def dismiss(self) -> None:
        await self._log.dismiss()

    async def hand_over(self, order: HandOver) -> HandedOver:
        return await self._log.hand_over(order)

    async def handed(self, number: int, rank: int, answer: HandedOver) -> None:
        await self._log.handed(number, rank, answer)

    async def adopt(self, order: Adopt) -> dict[int, StepReport]:
        return await self._log.adopt(order)

    async def adopted(self, number: int, rank: int, incarnation: int, report: StepReport) -> None:
        await self._log.adopted(number, rank, incarnation, report)

    async def take(
        self, after: int, incarnation: int, handed: int = 0, adopted: int = 0
    ) -> StepWork | HandOver | Adopt | Stop:
        return await self._log.take(after, incarnation, handed, adopted)

    async def report(self, step: int, rank: int, incarnation: int, report: StepReport) -> None:
        await self._log.report(step, rank, incarnation, report)

    async def result(self, step: int) -> dict[int, StepReport]:
        return await self._log.result(step)

    async def saved(self, step: int, rank: int, incarnation: int, saved: Saved) -> None:
        await self._log.saved(step, rank, incarnation, saved)

    async def all_saved(self, step: int) -> tuple[Saved, ...]:
        return await self._log.all_saved(step)

    async def forget(self, step: int) -> None:
        self._log.forget(step)
