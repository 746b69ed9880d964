"""The feed: which task is admitted next, and in which order finished groups are consumed.

Slots bound what is under way: `(max_staleness + 1) * prompts_per_step`. A trained group frees its
slot when the next weights are live, a filtered or dropped one at once. Consumption is strictly in
admission order; that is what bounds staleness. The feed is a plain object without clocks or Ray:
the loop tells it what happened.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from manta.actors.lanes import Admission
from manta.envs.records import GroupId
from manta.orchestrator.curriculum import CurriculumState

Ready = TypeVar("Ready")


class TaskOrder(Protocol):
    """Which tasks an epoch goes through, and in which order."""

    def begin(self, epoch: int) -> None:
        """The first group of `epoch`, which is not the first one, is about to be admitted."""

    def num_places(self, epoch: int) -> int:
        """How many places an epoch that has begun has."""

    def index(self, epoch: int, position: int) -> int:
        """The task that stands at this place of an epoch that has begun."""


@dataclass(frozen=True, slots=True)
class FeedState:
    """What a checkpoint keeps: the next new place, and the groups admitted but not settled, in the
    order they were or would be consumed in; for a cap that follows it, the running median of
    lengths; and the curriculum's part."""

    epoch: int
    position: int
    outstanding: tuple[GroupId, ...]
    median_length: float | None = None
    curriculum: CurriculumState | None = None

    @property
    def open_epochs(self) -> frozenset[int]:
        """Those that groups to come are of."""
        return frozenset((self.epoch, *(group.epoch for group in self.outstanding)))


class Feed(Generic[Ready]):
    """Admits tasks in `order`; `Ready` is whatever stands for a finished group."""

    def __init__(
        self, order: TaskOrder, slots: int, keeps_place: bool, num_epochs: float = math.inf
    ) -> None:
        """`keeps_place`: a retried group stays where it was in the order (deterministic runs);
        otherwise it goes to the tail, so that one bad group does not hold the others up. After
        `num_epochs` nothing new is admitted."""
        self._order = order
        self._num_epochs = num_epochs
        self._slots = slots
        self._keeps_place = keeps_place
        self._epoch = 0
        self._position = 0
        self._again: deque[GroupId] = deque()
        self._queue: OrderedDict[GroupId, Ready | None] = OrderedDict()
        self._consumed: dict[GroupId, int] = {}
        """By group, in order: the step it was consumed for, until that step is settled."""
        self._holding: set[GroupId] = set()
        """The consumed groups that have a slot still."""

    def restore(self, state: FeedState) -> None:
        """Outstanding groups are admitted first, in their order, as new attempts."""
        self._epoch, self._position = state.epoch, state.position
        self._again.extend(g._replace(attempt=g.attempt + 1) for g in state.outstanding)

    def state(self, step: int) -> FeedState:
        """What is left to do once everything consumed for steps up to `step` is settled."""
        later = (group for group, at in self._consumed.items() if at > step)
        return FeedState(self._epoch, self._position, (*later, *self._queue, *self._again))

    @property
    def num_in_flight(self) -> int:
        return sum(ready is None for ready in self._queue.values())

    @property
    def num_ready(self) -> int:
        return len(self._queue) - self.num_in_flight

    def admit(self) -> list[Admission]:
        """New admissions for every free slot, in order."""
        admissions = []
        while len(self._queue) + len(self._holding) < self._slots and self._has_more:
            group = self._again.popleft() if self._again else self._next()
            self._queue[group] = None
            self._entered(group)
            admissions.append(Admission(group, self._order.index(group.epoch, group.position)))
        return admissions

    @property
    def is_exhausted(self) -> bool:
        """Is everything consumed that there is?"""
        return not self._queue and not self._has_more

    @property
    def _has_more(self) -> bool:
        is_last = self._epoch + 1 >= self._num_epochs
        return bool(self._again) or not (is_last and self._epoch_is_over)

    @property
    def _epoch_is_over(self) -> bool:
        return self._position >= self._order.num_places(self._epoch)

    def finish(self, group: GroupId, ready: Ready) -> None:
        """`group`'s result has come."""
        assert self._queue[group] is None, f"group {group} finished twice"
        self._queue[group] = ready

    def retry(self, group: GroupId) -> Admission:
        """A broken group is admitted again as its next attempt, in the slot that it has."""
        assert self._queue[group] is None, f"group {group} failed after it finished"
        return self._try_again(group, self._keeps_place)

    def drop(self, group: GroupId) -> None:
        """A group that failed too often leaves for good; its slot is free at once."""
        assert self._queue[group] is None, f"group {group} failed after it finished"
        del self._queue[group]
        self._left(group)

    def has(self, group: GroupId) -> bool:
        """Is this attempt admitted, and not consumed?"""
        return group in self._queue

    def take(self, step: int) -> tuple[GroupId, Ready] | None:
        """Consumes the oldest group for `step` if it is ready; its slot stays taken."""
        group = next(iter(self._queue), None)
        return None if group is None else self._consume(group, step)

    def ready(self) -> list[tuple[GroupId, Ready]]:
        """The finished groups that nothing consumed yet, in order."""
        return [(group, ready) for group, ready in self._queue.items() if ready is not None]

    def ready_among(self, groups: Sequence[GroupId]) -> list[tuple[GroupId, Ready]]:
        """Those of `groups`, which have finished, that nothing consumed yet."""
        found = [(group, self._queue.get(group)) for group in groups]
        return [(group, ready) for group, ready in found if ready is not None]

    def renew(self, group: GroupId) -> Admission:
        """A finished group is not to train after all: its next attempt takes its place, so that
        the steps to come wait for it and it cannot be put off for ever."""
        assert self._queue[group] is not None, f"group {group} is not finished"
        return self._try_again(group, keeps_place=True)

    def close(self) -> list[GroupId]:
        """A step is full. The groups that leave because they come too late for it: none here."""
        return []

    def free(self, groups: Sequence[GroupId]) -> None:
        """The slots of consumed groups become free: filtered, or trained with weights live. The
        groups stay outstanding until their step is settled."""
        for group in groups:
            self._holding.remove(group)

    def settle(self, step: int) -> None:
        """Everything consumed for steps up to `step` is in the ledger."""
        self._consumed = {group: at for group, at in self._consumed.items() if at > step}

    def _try_again(self, group: GroupId, keeps_place: bool) -> Admission:
        again = group._replace(attempt=group.attempt + 1)
        if keeps_place:
            self._queue = OrderedDict(
                (again, None) if g == group else (g, r) for g, r in self._queue.items()
            )
        else:
            del self._queue[group]
            self._queue[again] = None
        self._entered(again, group if keeps_place else None)
        self._left(group)
        return Admission(again, self._order.index(again.epoch, again.position))

    def _consume(self, group: GroupId, step: int) -> tuple[GroupId, Ready] | None:
        ready = self._queue[group]
        if ready is None:
            return None
        del self._queue[group]
        self._left(group)
        self._consumed[group] = step
        self._holding.add(group)
        return group, ready

    def _entered(self, group: GroupId, instead_of: GroupId | None = None) -> None:
        """`group` is in the queue from here on, at its end or in the place of another attempt. For
        feeds that keep more of the queue than its order."""

    def _left(self, group: GroupId) -> None:
        """`group` is not in the queue any more."""

    def _next(self) -> GroupId:
        if self._epoch_is_over:
            self._epoch, self._position = self._epoch + 1, 0
            self._order.begin(self._epoch)
        group = GroupId(self._epoch, self._position, 0)
        self._position += 1
        return group
