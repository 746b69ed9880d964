"""Whether the learner group should go on with other ranks: where there is place for more, or where
nodes that ranks are on are about to leave.

Owns the look at places and nodes, and the wish that follows. When the group changes is the training
stage's decision: at the border of two steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from manta.actors.worker_range import RankRange
from manta.orchestrator.learner_group import LearnerGroup
from manta.orchestrator.pools import MailboxClient

_SECONDS = 1.0
_LAST_SECONDS = 20.0
"""Before a node goes: ranks move with what places there are."""


@dataclass(frozen=True, slots=True)
class Places:
    """`staying` ranks on nodes that stay, `leaving` ones on nodes of which the first is gone in
    `seconds_left`; `found` places beside, the same for `settled_seconds`."""

    staying: int
    leaving: int
    found: int
    settled_seconds: float
    seconds_left: float = float("inf")


def wish(sizes: RankRange, seen: Places) -> str:
    """Why the group should be followed by one of other ranks; empty where it should stay."""
    possible = min(sizes.max, seen.staying + seen.found)
    present = seen.staying + seen.leaving
    is_settled = seen.settled_seconds >= sizes.settle_seconds
    if seen.leaving:
        is_time = possible >= present or is_settled or seen.seconds_left < _LAST_SECONDS
        return "nodes of its ranks are leaving" if possible >= sizes.min and is_time else ""
    if possible > present and (possible == sizes.max or is_settled):
        return f"there is place for {possible} ranks"
    return ""


class LearnerSizing:
    """`draining`: by node that is about to leave, when it does, in milliseconds since 1970; 0: not
    said."""

    def __init__(
        self,
        sizes: RankRange,
        group: LearnerGroup,
        client: MailboxClient,
        draining: Callable[[], Mapping[str, int]],
    ) -> None:
        self._sizes, self._group, self._client = sizes, group, client
        self._draining = draining
        self._found, self._since = 0, time.monotonic()

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        beats = await self._client.heartbeats()
        if not beats or len(beats) != self._group.ranks:
            # Between two groups
            return
        nodes = [beat.member.node for beat in beats]
        draining = self._draining()
        leaving = [draining[node] for node in nodes if node in draining]
        staying = len(nodes) - len(leaving)
        found = await self._group.seek(self._sizes.max - staying, draining)
        now = time.monotonic()
        if found != self._found:
            self._found, self._since = found, now
        ends = [end / 1000 - time.time() for end in leaving if end]
        left = min(ends, default=float("inf"))
        seen = Places(staying, len(leaving), found, now - self._since, left)
        self._group.wish_of(beats[0].incarnation, wish(self._sizes, seen))
