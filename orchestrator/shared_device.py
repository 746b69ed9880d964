"""The device that learner and engines share in a colocated run, as the driver sees it.

Stands where steps are handed over: puts engines to sleep before a step goes to the learner, and
bounds the publish that wakes them. A step in the mailbox is the learner's turn; a report with
weights is its end, since ranks offload before they report. So a run that trains several steps
between two publishes keeps the learner's memory where it is, and the engines asleep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from manta.actors.device_turns import DeviceTurns
from manta.actors.step_work import Adopt, StepReport, StepWork
from manta.envs.side_by_side import side_by_side
from manta.orchestrator.wait import Waits


class Sleepers(Protocol):
    """The engines beside the learner."""

    @property
    def names(self) -> Sequence[str]: ...

    async def sleep(self, name: str) -> bool:
        """False where the engine died: its memory is free, the next publish says that it is
        gone."""
        ...


class StepMailbox(Protocol):
    """Where the step loop hands a step over, and gets what became of it; and where other weights
    go between two stages."""

    async def put(self, work: StepWork) -> None: ...

    async def result(self, step: int) -> Mapping[int, StepReport]: ...

    async def adopt(self, order: Adopt) -> Mapping[int, StepReport]: ...


class SharedDevice:
    """A `StepMailbox` before `mailbox` that takes the turns."""

    def __init__(
        self, engines: Sleepers, mailbox: StepMailbox, waits: Waits, deadline_seconds: float
    ) -> None:
        self._engines, self._mailbox = engines, mailbox
        self._waits, self._deadline = waits, deadline_seconds
        self.turns = DeviceTurns()

    async def put(self, work: StepWork) -> None:
        """Hands the device to the learner, and the step with it."""
        await self._put_to_sleep()
        await self._mailbox.put(work)

    async def result(self, step: int) -> Mapping[int, StepReport]:
        return await self._mailbox.result(step)

    async def adopt(self, order: Adopt) -> Mapping[int, StepReport]:
        """Hands the device to the learner to take other weights, which are to be published."""
        await self._put_to_sleep()
        return await self._mailbox.adopt(order)

    async def _put_to_sleep(self) -> None:
        if self.turns.state != "training":
            with self._turn("sleep", "train"):
                await self._waits.wait(
                    f"engines {', '.join(self._engines.names)} to sleep",
                    side_by_side([self._engines.sleep(name) for name in self._engines.names]),
                    self._deadline,
                )

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Around a publish of weights that the learner has reported."""
        with self._turn("wake", "serve"):
            yield

    @contextmanager
    def _turn(
        self, begin: Literal["wake", "sleep"], end: Literal["serve", "train"]
    ) -> Iterator[None]:
        self.turns.say(begin)
        is_done = False
        try:
            yield
            is_done = True
        finally:
            self.turns.say(end if is_done else "break")
