"""How many workers a role should have, from what it is told of the work: a plain object.

Owns the decision only. It grows within seconds, to what the work needs, once that was more than
there is for most of `GROW_SECONDS`, with the learner waiting for groups; nothing is gained by
groups that lie ready. It shrinks only after the range's `idle_seconds` and `SHRINK_STEPS` whole
steps in which fewer would have done at every moment, since what stands idle while the learner
computes may be needed for every step; and by a quarter at a time where the learner did not wait at
all. A role that grows soon after it shrank waits twice as long before it shrinks again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from manta.actors.worker_range import WorkerRange

GROW_SECONDS = 4.0
SHRINK_STEPS = 2
_MOST_IDLE_SECONDS = 1800.0
_SHARE_LEFT = 0.75
_MOST = 0.5


@dataclass(frozen=True, slots=True)
class Demand:
    """`needed`: workers that would be fully at work now; `is_waited_for`: does the learner, or an
    evaluation, wait for groups? `steps` that the run has made."""

    needed: float
    is_waited_for: bool
    steps: int


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    needed: int
    is_waited_for: bool


class Scaling:
    def __init__(
        self,
        sizes: WorkerRange,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sizes, self._clock = sizes, clock
        self.target = sizes.min
        self._least_idle = self._idle = sizes.idle_seconds
        self._seen: deque[_Seen] = deque()
        self._changed_at = clock()
        self._quiet_since: tuple[float, int] | None = None
        self._shrunk_at = float("-inf")

    def tell(self, demand: Demand) -> int:
        """The target, now that `demand` is known; to be told once a second or more
        often."""
        now = self._clock()
        needed = min(self._sizes.max, max(self._sizes.min, -int(-demand.needed // 1)))
        self._seen.append(_Seen(now, needed, demand.is_waited_for))
        if self._grows(now):
            self._changed_at, self._quiet_since = now, None
        elif self._is_idle(now, needed, demand):
            self.target = self._fewer(now)
            self._shrunk_at = self._changed_at = now
            self._quiet_since = None
        self._forget(now)
        return self.target

    def _grows(self, now: float) -> bool:
        recent = [seen for seen in self._seen if seen.at > now - GROW_SECONDS]
        short = [seen.needed for seen in recent if seen.is_waited_for and seen.needed > self.target]
        is_known = now - self._changed_at >= GROW_SECONDS
        if not is_known or len(short) <= len(recent) * _MOST:
            return False
        self.target = sorted(short)[len(short) // 2]
        if now - self._shrunk_at < 2 * self._idle:
            self._idle = min(_MOST_IDLE_SECONDS, 2 * self._idle)
        elif now - self._shrunk_at > 8 * self._idle:
            self._idle = self._least_idle
        return True

    def _is_idle(self, now: float, needed: int, demand: Demand) -> bool:
        """Would fewer have done since a while?"""
        if demand.is_waited_for and needed >= self.target:
            self._quiet_since = None
            return False
        if self._quiet_since is None:
            self._quiet_since = now, demand.steps
        since, steps = self._quiet_since
        # One more step than are to be whole: the first has begun before
        is_long = now - since >= self._idle and demand.steps - steps > SHRINK_STEPS
        return is_long and self.target > self._sizes.min

    def _forget(self, now: float) -> None:
        """What was seen before anything that is still being watched."""
        since = now - GROW_SECONDS
        if self._quiet_since is not None:
            since = min(since, self._quiet_since[0])
        while self._seen[0].at < since:
            self._seen.popleft()

    def _fewer(self, now: float) -> int:
        assert self._quiet_since is not None
        since = self._quiet_since[0]
        waited = [seen.needed for seen in self._seen if seen.is_waited_for and seen.at >= since]
        # Where nobody waited nothing says how few would do: that is tried out
        least = max(waited, default=0)
        return max(self._sizes.min, least, int(self.target * _SHARE_LEFT))
