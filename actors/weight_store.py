"""The weight store: holds the newest snapshot of the learner's weights for engines and joiners.

The learner's rank 0 puts; what `get` returns belongs to the caller, so the driver owns the object
that engines read. Verifying what arrived is the publisher's part.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from manta.actors.weights import Weights
from manta.envs.records import WeightVersion


class WeightStore:
    def __init__(self) -> None:
        self._newest: Weights | None = None
        self._changed = asyncio.Condition()

    async def put(self, weights: Weights) -> None:
        """Keeps a copy of its own: the object that carried `weights` dies with its sender."""
        async with self._changed:
            self._newest = replace(weights, data=weights.data.copy())
            self._changed.notify_all()

    async def get(self, version: WeightVersion) -> Weights:
        """The snapshot `version`; waits until it is there.

        Raises ValueError where a newer one has replaced it.
        """
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._newest is not None and self._newest.version >= version
            )
        assert self._newest is not None
        if self._newest.version != version:
            raise ValueError(f"weights {version} were replaced by {self._newest.version}")
        return self._newest
