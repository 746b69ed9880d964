"""Nodes that are about to leave the cluster: their workers move before that.

Ray knows a node that drains (a spot notice, an autoscaler that takes it back) and until when. Owns
the look at them; leaving and joining are the seats' part. A node without workers of this run is
nobody's concern here: an autoscaler drains those that are idle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ray._private.state import state

from manta.envs.records import Json
from manta.orchestrator.health import WorkerReport
from manta.orchestrator.seats import LEAVE_SECONDS, Seats

_SECONDS = 1.0
_RESERVE_SECONDS = 5.0
"""Of the time that a node has left, what Ray gets to end it."""


class DrainingNodes:
    """`workers` says who is where, learner ranks too. `now`: the nodes that drain, and until when
    each is there, in milliseconds since 1970 (0: not said)."""

    def __init__(
        self,
        seats: Sequence[Seats[Any]],
        workers: Callable[[], Iterable[WorkerReport]],
        event: Callable[[str, Mapping[str, Json]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` in seconds since 1970."""
        self._seats, self._workers, self._event = seats, workers, event
        self._clock = clock
        self._known: set[str] = set()
        self.now: Mapping[str, int] = {}

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        while True:
            self.hear(await asyncio.to_thread(state.get_draining_nodes))
            await asyncio.sleep(_SECONDS)

    def hear(self, draining: Mapping[str, int]) -> None:
        """These are the nodes that drain, as in `now`."""
        self.now = draining
        left = {node: self._seconds_left(draining[node]) for node in draining}
        there: dict[str, list[WorkerReport]] = {}
        for worker in self._workers():
            if worker.identity is not None and worker.identity.node in left:
                there.setdefault(worker.identity.node, []).append(worker)
        for node in sorted(there.keys() - self._known):
            self._known.add(node)
            names = ", ".join(worker.name for worker in there[node])
            fields: dict[str, Json] = {"node": node, "workers": names}
            if draining[node]:
                fields["seconds_left"] = round(draining[node] / 1000 - self._clock(), 1)
            self._event("node drains", fields)
        seconds = {worker.key: left[node] for node, found in there.items() for worker in found}
        for seats in self._seats:
            for name, handle in seats.workers().items():
                if (key := handle._actor_id.hex()) in seconds:
                    seats.move(name, seconds[key])

    def _seconds_left(self, until: int) -> float:
        if not until:
            return LEAVE_SECONDS
        return max(0.0, until / 1000 - self._clock() - _RESERVE_SECONDS)
