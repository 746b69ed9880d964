"""Nodes that are about to leave the cluster: their workers move before that.

Ray knows a node that drains (a spot notice, an autoscaler that takes it back) and until when. Owns
the look at them; leaving and joining are the seats' part.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray._private.state import state

from manta.envs.records import Json
from manta.orchestrator.pools import ask_each
from manta.orchestrator.seats import LEAVE_SECONDS, Seats

_SECONDS = 1.0
_RESERVE_SECONDS = 5.0
"""Of the time that a node has left, what Ray gets to end it."""


class DrainingNodes:
    """`now`: those there are, and until when each is there, in milliseconds since 1970 (0: not
    said)."""

    def __init__(
        self, seats: Sequence[Seats[Any]], event: Callable[[str, Mapping[str, Json]], None]
    ) -> None:
        self._seats, self._event = seats, event
        self._known: set[str] = set()
        self.now: Mapping[str, int] = {}

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        draining: dict[str, int] = await asyncio.to_thread(state.get_draining_nodes)
        self.now = draining
        for node in sorted(draining.keys() - self._known):
            self._known.add(node)
            self._event("node drains", {"node": node})
        if draining:
            for seats in self._seats:
                await self._move(seats, draining)

    async def _move(self, seats: Seats[Any], draining: Mapping[str, int]) -> None:
        """`draining`: by node, until when it is there, in milliseconds since 1970; 0: not said."""
        for name, worker in seats.workers().items():
            found: list[str] = await ask_each(
                {name: worker}, lambda each: each.__ray_call__.remote(_node)
            )
            if found and found[0] in draining:
                deadline = draining[found[0]]
                left = deadline / 1000 - time.time() - _RESERVE_SECONDS
                seconds = max(0.0, left) if deadline else LEAVE_SECONDS
                seats.move(name, seconds)


def _node(_: object) -> str:
    """Where the actor that runs this is."""
    node: str = ray.get_runtime_context().get_node_id()
    return node
