"""A feed for steps that over-sample and carry over what they did not wait for.

A step takes the groups that finish first. What is unfinished once it is full goes on in the
engines, over the publish, token by token under the version that sampled it: nothing that was made
is lost (partial rollouts: Kimi k1.5, arXiv 2501.12599; APRIL, arXiv 2509.18521). A group that was
overtaken as often as staleness allows is due: the step waits for it.

Why the bound holds: new groups are admitted only when the newest weights are live, and each step
that ends without a group counts once, so a group's age is never more than that count. After a step
at most `slots - prompts` groups are left, which is at most `prompts`; so all that are due fit into
one step, and none has to be put off again.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

from manta.actors.lanes import Admission
from manta.envs.records import GroupId
from manta.orchestrator.feed import Feed, TaskOrder
from manta.orchestrator.finished_order import FinishedOrder

Ready = TypeVar("Ready")


class CarryingFeed(Feed[Ready]):
    """Steps of `prompts` groups out of `slots` (as many to twice as many) admitted ones, of which
    none is overtaken more than `most_overtaken` times."""

    def __init__(self, order: TaskOrder, prompts: int, slots: int, most_overtaken: int) -> None:
        assert prompts <= slots <= 2 * prompts, f"{slots} slots for steps of {prompts} groups"
        super().__init__(order, slots, keeps_place=False)
        self._prompts, self._most_overtaken = prompts, most_overtaken
        self._finished, self._due = FinishedOrder(), FinishedOrder()
        self._overtaken: Counter[tuple[int, int]] = Counter()
        """By place: a group that breaks and is tried again is as old as its first attempt."""
        self._is_open = True
        """Nothing is admitted from the moment a step is full until its weights are live."""

    def admit(self) -> list[Admission]:
        return super().admit() if self._is_open else []

    def take(self, step: int) -> tuple[GroupId, Ready] | None:
        """Consumes a finished group: one that is due, or, where the step has room beyond those
        that are due, the first in order."""
        group = self._due.first()
        if group is None and self._prompts - len(self._holding) - len(self._due) > 0:
            group = self._finished.first()
        return None if group is None else self._consume(group, step)

    def finish(self, group: GroupId, ready: Ready) -> None:
        super().finish(group, ready)
        self._finished.finish(group)
        if group in self._due:
            self._due.finish(group)

    def close(self) -> list[GroupId]:
        """The step is full: everything else is overtaken once more, and none of it leaves."""
        self._overtaken.update(group[:2] for group in self._queue)
        for group, ready in self._queue.items():
            if group not in self._due and self._is_due(group):
                self._due.enter(group)
                if ready is not None:
                    self._due.finish(group)
        self._is_open = False
        return []

    def settle(self, step: int) -> None:
        super().settle(step)
        self._is_open = True
        waiting = {group[:2] for group in self._queue}
        self._overtaken = Counter({p: n for p, n in self._overtaken.items() if p in waiting})

    def _is_due(self, group: GroupId) -> bool:
        return self._overtaken[group[:2]] >= self._most_overtaken

    def _entered(self, group: GroupId, instead_of: GroupId | None = None) -> None:
        self._finished.enter(group, instead_of)
        if self._is_due(group):
            self._due.enter(group, instead_of)

    def _left(self, group: GroupId) -> None:
        self._finished.leave(group)
        self._due.leave(group)
