"""Typed wrapper over the reference workers of a run; all of them hold the same weights.

See `manta.orchestrator.pools` for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import ray

from manta.actors.reference import ReferenceWorker
from manta.actors.stored_folder import WrittenFile
from manta.actors.transports.protocol import Parcel
from manta.actors.transports.settings import TransportSettings
from manta.actors.weights import Receipt, Weights
from manta.orchestrator.config import ReferenceConfig
from manta.orchestrator.pools import ModelSource, start


class ReferencePool:
    def __init__(
        self,
        settings: ReferenceConfig,
        cpus: float,
        model: ModelSource,
        temperature: float,
        transport: TransportSettings,
    ) -> None:
        self.handles = [
            start(
                ReferenceWorker,
                cpus,
                model.spec,
                model.vocab_size,
                model.seed,
                settings.threads,
                settings.tokens_per_batch,
                temperature,
                transport,
            )
            for _ in range(settings.workers)
        ]

    async def load(self, weights: Weights, name: str) -> list[Receipt]:
        """Makes `weights` the reference, called `name`."""
        stored = ray.put(weights)
        return await asyncio.gather(*(handle.load.remote(stored, name) for handle in self.handles))

    async def follow(
        self, parcel: ray.ObjectRef[Parcel], sha256: str, name: str, decay: float | None
    ) -> list[Receipt]:
        """See `ReferenceWorker.follow`."""
        return await asyncio.gather(
            *(handle.follow.remote(parcel, sha256, name, decay) for handle in self.handles)
        )

    def save(self, folder: str) -> Awaitable[tuple[WrittenFile, ...]]:
        """One worker brings the reference to `folder`, as it is when this is called."""
        return self.handles[0].save.remote(folder)

    async def restore(self, folder: str) -> str:
        """Every worker goes on from what was saved; the version of that."""
        versions: list[str] = await asyncio.gather(
            *(handle.restore.remote(folder) for handle in self.handles)
        )
        return versions[0]

    async def version(self) -> str:
        """Of what scores now."""
        version: str = await self.handles[0].version.remote()
        return version
