"""The seats of one role: each has a worker, and a worker that dies is replaced by a new one.

Owns who is at work, how often seats have lost their workers, and how many seats there are. What a
worker is, how it is made ready and how it leaves is its `Role`'s; how many seats there should be is
decided elsewhere (`manta.orchestrator.scaling`).

A death is learnt by push: every worker has a call `stay` that never returns, and fails the moment
its process is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

import ray

from manta.envs.records import Json
from manta.envs.side_by_side import ending

Worker = TypeVar("Worker")
Event: TypeAlias = Callable[[str, Mapping[str, Json]], None]

MAX_DEATHS = 5
"""Workers of a seat that die one after the other before any of them has served."""
LEAVE_SECONDS = 60.0
"""What a worker that is not wanted any more has to finish what it has."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What Ray marks up for a terminal."""
_PAUSE_SECONDS = 1.0
"""Before a worker is replaced that has not served; twice as long each time."""


MAX_TRIES = 3
"""Workers that may die under one request of the driver's: then it may be the request."""


class NoWorkerLeft(RuntimeError):
    """Every seat of a role has lost its worker for good."""


class NoWorkerStarts(RuntimeError):
    """No worker of a role has survived its own constructor."""


class Role(Protocol[Worker]):
    """What a kind of worker is to its seats. Whatever asks a worker raises RayActorError where
    it is gone."""

    @property
    def role(self) -> str:
        """What a person calls such a worker."""
        ...

    def start(self, seat: int) -> tuple[str, Worker]:
        """A new worker and its name; not waited for."""
        ...

    async def stay(self, worker: Worker) -> None:
        """Returns never."""
        ...

    async def join(self, name: str, worker: Worker) -> None:
        """Makes a worker ready and takes it into service, unless it is."""
        ...

    async def lost(self, name: str) -> None:
        """The worker is gone, or has been given up: nothing more for it."""
        ...

    async def leave(self, name: str) -> None:
        """Gives a worker nothing more; returns once it has finished what it has."""
        ...

    async def end(self, name: str, worker: Worker) -> None:
        """Ends the worker, whatever it does."""
        ...


@dataclass(slots=True)
class _Seat(Generic[Worker]):
    """`is_news`: its worker was not there from the start. `is_moving`: another seat takes its
    place. `seconds` bound its leaving."""

    number: int
    name: str
    worker: Worker
    is_news: bool = False
    is_working: bool = False
    is_moving: bool = False
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    seconds: float = LEAVE_SECONDS


@dataclass(frozen=True, slots=True)
class SeatFigures:
    """`target`: seats that are to be filled; `working` and `starting`: those that are, or will be;
    `deaths`: workers that died so far."""

    target: int
    working: int
    starting: int
    deaths: int


class Seats(Generic[Worker]):
    def __init__(
        self,
        role: Role[Worker],
        first: Sequence[tuple[str, Worker]],
        max_deaths: int = MAX_DEATHS,
    ) -> None:
        """`first`: the workers that are there already, by seat."""
        self._role, self._max_deaths = role, max_deaths
        self._seats = {i: _Seat(i, name, worker) for i, (name, worker) in enumerate(first)}
        self._tasks: asyncio.TaskGroup | None = None
        self._event: Event = lambda name, fields: None
        self._deaths = 0
        self._has_worked = False

    @property
    def is_running(self) -> bool:
        """Is somebody there who replaces workers?"""
        return self._tasks is not None

    def figures(self) -> SeatFigures:
        seats = self._open()
        working = sum(seat.is_working for seat in seats)
        return SeatFigures(len(seats), working, len(seats) - working, self._deaths)

    async def run(self, event: Event) -> None:
        """Keeps seats filled until cancelled; tells `event` what happens to workers.

        Raises NoWorkerLeft, NoWorkerStarts, and what `join` raises other than a worker's death.
        """
        self._event = event
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for seat in self._seats.values():
                    tasks.create_task(self._hold(seat))
                await asyncio.Event().wait()
        finally:
            self._tasks = None

    def tell(self, what: str, worker: str, of: str) -> None:
        """An event of the role's own: what became of `worker` on account `of` another one."""
        self._event(f"{self._role.role} {what}", {"worker": worker, "of": of})

    def resize(self, size: int) -> None:
        """From now on there are `size` seats. Workers that are not up yet go first."""
        for _ in range(size - len(self._open())):
            self._add()
        by_worth = sorted(self._open(), key=lambda seat: (seat.is_working, -seat.number))
        for seat in by_worth[: len(by_worth) - size]:
            seat.leaving.set()

    def move(self, name: str, seconds: float) -> None:
        """The worker `name` has `seconds`; another one is started at once, and takes over as soon
        as it has joined, or when half of the time is over."""
        for seat in self._open():
            if seat.name == name:
                assert self._tasks is not None, "seats change while somebody keeps them"
                seat.is_moving = True
                self._tasks.create_task(self._relieve(seat, self._add(), seconds))

    def members(self) -> dict[str, Worker]:
        """All that have been started and not been let go, by name."""
        return {seat.name: seat.worker for seat in self._seats.values()}

    def workers(self) -> dict[str, Worker]:
        """Those that are up and are to stay."""
        return {seat.name: seat.worker for seat in self._open() if seat.is_working}

    def _open(self) -> list[_Seat[Worker]]:
        """Those that are to stay."""
        return [
            seat
            for seat in self._seats.values()
            if not seat.is_moving and not seat.leaving.is_set()
        ]

    async def _relieve(self, seat: _Seat[Worker], other: _Seat[Worker], seconds: float) -> None:
        begun = asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            await asyncio.wait_for(other.joined.wait(), seconds / 2)
        seat.seconds = max(0.0, seconds - (asyncio.get_running_loop().time() - begun))
        seat.leaving.set()

    def _add(self) -> _Seat[Worker]:
        assert self._tasks is not None, "seats change while somebody keeps them"
        number = next(i for i in itertools.count() if i not in self._seats)
        seat = self._seats[number] = _Seat(number, *self._role.start(number), is_news=True)
        self._tasks.create_task(self._hold(seat))
        return seat

    async def _hold(self, seat: _Seat[Worker]) -> None:
        """One seat, one worker after the other."""
        in_a_row = 0
        while (death := await self._work(seat)) is not None:
            in_a_row = 0 if seat.is_working else in_a_row + 1
            seat.is_working = False
            self._deaths += 1
            cause = _cause(death)
            self._event(f"{self._role.role} died", {"worker": seat.name, "cause": cause})
            await self._role.lost(seat.name)
            await self._role.end(seat.name, seat.worker)
            # What no constructor of the role has survived, the next one will not
            is_hopeless = death.actor_init_failed and not self._has_worked
            if in_a_row == self._max_deaths or is_hopeless:
                self._give_up(
                    seat, in_a_row, cause, NoWorkerStarts if is_hopeless else NoWorkerLeft
                )
                return
            await asyncio.sleep(_PAUSE_SECONDS * (2**in_a_row - 1))
            if seat.is_moving or seat.leaving.is_set():
                break
            seat.name, seat.worker = self._role.start(seat.number)
            seat.is_news = True
        del self._seats[seat.number]

    async def _work(self, seat: _Seat[Worker]) -> ray.exceptions.RayActorError | None:
        """A worker's life; what it died of, None where it left."""
        staying = asyncio.ensure_future(self._role.stay(seat.worker))
        joining = asyncio.ensure_future(self._role.join(seat.name, seat.worker))
        leaving = asyncio.ensure_future(seat.leaving.wait())
        async with ending(staying, joining, leaving):
            await asyncio.wait({staying, joining, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if joining.done() and not staying.done():
                with suppress(ray.exceptions.RayActorError):
                    joining.result()
                    seat.is_working = self._has_worked = True
                    seat.joined.set()
                    if seat.is_news:
                        self._event(f"{self._role.role} joined", {"worker": seat.name})
                    await asyncio.wait({staying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            died = _death(staying) or _death(joining)
            if died is not None:
                return died
            await self._let_go(seat, staying)
        return None

    async def _let_go(self, seat: _Seat[Worker], staying: asyncio.Future[None]) -> None:
        if seat.is_working:
            going = asyncio.ensure_future(self._role.leave(seat.name))
            async with ending(going):
                both = {going, staying}
                await asyncio.wait(both, timeout=seat.seconds, return_when=asyncio.FIRST_COMPLETED)
        await self._role.lost(seat.name)
        await self._role.end(seat.name, seat.worker)
        what = "left" if seat.is_working else "not needed any more"
        self._event(f"{self._role.role} {what}", {"worker": seat.name})

    def _give_up(
        self,
        seat: _Seat[Worker],
        in_a_row: int,
        cause: str,
        kind: type[NoWorkerLeft | NoWorkerStarts],
    ) -> None:
        del self._seats[seat.number]
        told = f"{in_a_row} died one after the other before any of them served"
        self._event(f"{self._role.role} not replaced", {"worker": seat.name, "why": told})
        if not self._seats:
            raise kind(
                f"no {self._role.role} is left: {told}, the last one, {seat.name}, of: {cause}. "
                "Look at their logs in the Ray session directory (out of memory?), then start the "
                "run again"
            )


def _death(asked: asyncio.Future[None]) -> ray.exceptions.RayActorError | None:
    """What the worker died of that was `asked`; None where it lives. Raises what else it raised."""
    if not asked.done() or asked.cancelled():
        return None
    error = asked.exception()
    if isinstance(error, ray.exceptions.RayActorError):
        return error
    if error is not None:
        raise error
    return None


def _cause(error: ray.exceptions.RayActorError) -> str:
    """The first lines of what Ray says; of a constructor's failure what it raised, which comes
    last."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if error.actor_init_failed and lines:
        return f"its constructor failed: {lines[-1][:400]}"
    return " ".join(lines[:6])[:400] or type(error).__name__
