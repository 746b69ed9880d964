"""A feed for synchronous steps that over-sample: a step takes the groups that finish first.

What is unfinished once the step is full would be too old for the next one: it is overtaken, and
owed. A group is overtaken at most once: as soon as a whole step of groups is owed, the next step is
made of them alone and waits for every one. So all tasks train, whatever their length; the long ones
train together, in few steps, and the many other steps do not wait for them (tail batching, as in
RollPacker, arXiv 2509.21009).
"""

from __future__ import annotations

from collections import deque
from typing import TypeVar

from manta.actors.lanes import Admission
from manta.envs.records import GroupId
from manta.orchestrator.feed import Feed, FeedState, TaskOrder
from manta.orchestrator.finished_order import FinishedOrder

Ready = TypeVar("Ready")


class RacingFeed(Feed[Ready]):
    """Steps of `prompts` groups out of `slots` (at least as many) admitted ones."""

    def __init__(self, order: TaskOrder, prompts: int, slots: int) -> None:
        super().__init__(order, slots, keeps_place=False)
        self._prompts = prompts
        self._racing_slots = slots
        self._finished = FinishedOrder()
        self._owed: deque[GroupId] = deque()
        self._is_race = True
        self._is_open = True
        """Nothing is admitted from the moment a step is full until its weights are live."""

    def state(self, step: int) -> FeedState:
        base = super().state(step)
        return FeedState(base.epoch, base.position, (*base.outstanding, *self._owed))

    def admit(self) -> list[Admission]:
        return super().admit() if self._is_open else []

    def take(self, step: int) -> tuple[GroupId, Ready] | None:
        """Consumes a finished group: in a race the first in admission order that is ready."""
        if not self._is_race:
            return super().take(step)
        group = self._finished.first()
        return None if group is None else self._consume(group, step)

    def finish(self, group: GroupId, ready: Ready) -> None:
        super().finish(group, ready)
        self._finished.finish(group)

    def close(self) -> list[GroupId]:
        """The step is full: everything else is overtaken, owed as its next attempt."""
        overtaken = list(self._queue)
        self._queue.clear()
        for group in overtaken:
            self._left(group)
        self._owed.extend(group._replace(attempt=group.attempt + 1) for group in overtaken)
        self._is_open = False
        return overtaken

    def settle(self, step: int) -> None:
        super().settle(step)
        self._is_open = True
        self._is_race = len(self._owed) < self._prompts
        self._slots = self._racing_slots if self._is_race else self._prompts
        if not self._is_race:
            self._again.extend(self._owed.popleft() for _ in range(self._prompts))

    def _entered(self, group: GroupId, instead_of: GroupId | None = None) -> None:
        self._finished.enter(group, instead_of)

    def _left(self, group: GroupId) -> None:
        self._finished.leave(group)
