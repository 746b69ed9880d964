"""The workers of scorers, as a reward worker on another node sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from manta.actors.scorer_calls import ScorerCalls, ScorerLost
from manta.envs.packing import PackedShown
from manta.envs.records import Score

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from manta.actors.scorer import ScorerWorker


class RemoteScorer:
    """A scorer worker. What it raises is ScorerLost where Ray lost it."""

    def __init__(self, handle: ActorHandle[ScorerWorker]) -> None:
        self._handle = handle

    async def score(self, packed: PackedShown) -> list[Score]:
        try:
            return await self._handle.score.remote(packed)
        except ray.exceptions.RayActorError as error:
            raise ScorerLost(f"a scorer's worker was lost: {error}") from error


@dataclass(frozen=True, slots=True)
class ScorerPlace:
    """Where the scorer `name` is found, and how long a call to it may take."""

    name: str
    handles: tuple[ActorHandle[ScorerWorker], ...]
    deadline_seconds: float

    def endpoints(self) -> list[RemoteScorer]:
        return [RemoteScorer(handle) for handle in self.handles]

    def calls(self) -> ScorerCalls:
        return ScorerCalls(self.name, self.endpoints(), self.deadline_seconds)
