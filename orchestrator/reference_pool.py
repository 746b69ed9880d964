"""Typed wrapper over the reference workers of a run; all of them hold the same weights.

Owns how a new worker comes by them: from one that has them, else from where they came.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import ray
from ray.actor import ActorHandle

from manta.actors.reference import ReferenceWorker
from manta.actors.scorers.settings import Combination
from manta.actors.stored_folder import WrittenFile
from manta.actors.transports.protocol import Parcel
from manta.actors.transports.settings import TransportSettings
from manta.actors.weights import Receipt, Weights
from manta.orchestrator.actor_pool import ActorPool
from manta.orchestrator.pools import ModelSource, ask_each, start
from manta.orchestrator.reference_config import ReferenceConfig

T = TypeVar("T")


class ReferenceLost(RuntimeError):
    """No worker holds the moving average any more."""


class ReferencePool(ActorPool[ReferenceWorker]):
    """Weights and newcomers come one after the other, so that no worker misses a change."""

    role = "reference worker"

    def __init__(
        self,
        settings: ReferenceConfig,
        cpus: float,
        model: ModelSource,
        temperature: float,
        transport: TransportSettings,
    ) -> None:
        self._cpus = cpus
        self._arguments = (
            model.spec,
            model.vocab_size,
            model.seed,
            settings.threads,
            settings.tokens_per_batch,
            temperature,
            transport,
        )
        self._numbers = itertools.count()
        self._changing = asyncio.Lock()
        self._again: Callable[[ActorHandle[ReferenceWorker]], Awaitable[object]] | None = _as_built
        """What brings a worker that was just built to what the others hold; None where only they
        can."""
        super().__init__(settings.workers)

    # As the role of its seats

    def start(self, seat: int) -> tuple[str, ActorHandle[ReferenceWorker]]:
        handle = start(ReferenceWorker, self._cpus, *self._arguments, role="reference")
        return f"reference-{next(self._numbers)}", handle

    async def join(self, name: str, worker: ActorHandle[ReferenceWorker]) -> None:
        """Raises ReferenceLost where nobody has what it should hold."""
        await worker.version.remote()
        async with self._changing:
            if name not in self.living.workers:
                await self._bring_up(worker)
                self.living.newcomers[name] = worker
                self.living.come(name)
        await self.tell()

    # What the rest of the driver asks for

    async def load(self, weights: Weights, name: str) -> list[Receipt]:
        """Makes `weights` the reference, called `name`."""
        stored = ray.put(weights)
        return await self._all_take(lambda worker: worker.load.remote(stored, name))

    async def combine(
        self, combination: Combination, weights: Sequence[Weights]
    ) -> list[tuple[Receipt, ...]]:
        """Makes `combination` the reference, of whose names `weights` are."""
        stored = [ray.put(each) for each in weights]
        return await self._all_take(lambda worker: worker.combine.remote(combination, *stored))

    async def follow(
        self, parcel: ray.ObjectRef[Parcel], sha256: str, name: str, decay: float | None
    ) -> list[Receipt]:
        """See `ReferenceWorker.follow`."""
        return await self._all_take(
            lambda worker: worker.follow.remote(parcel, sha256, name, decay), decay is None
        )

    async def restore(self, folder: str) -> str:
        """Every worker goes on from what was saved; the version of that."""
        versions: list[str] = await self._all_take(lambda worker: worker.restore.remote(folder))
        return versions[0]

    def save(self, folder: str) -> Awaitable[tuple[WrittenFile, ...]]:
        """One worker brings the reference to `folder`, as it is when this is called."""
        return self.handles[0].save.remote(folder)

    async def version(self) -> str:
        """Of what scores now."""
        version: str = await self.living.ask_one(lambda worker: worker.version.remote())
        return version

    async def _all_take(
        self, take: Callable[[ActorHandle[ReferenceWorker]], Awaitable[T]], can_begin: bool = True
    ) -> list[T]:
        """What each worker answers that takes other weights. Where it `can_begin` with them, so
        can one that was just built."""
        async with self._changing:
            answers = await ask_each(self.living.workers, take)
            self._again = take if can_begin else None
        if not answers and can_begin:
            return [await self.living.ask_one(take)]
        if not answers:
            await self.living.one()
        return answers

    async def _bring_up(self, worker: ActorHandle[ReferenceWorker]) -> None:
        for peer in self.handles:
            if await ask_each({"": peer}, lambda peer: peer.version.remote()):
                await worker.adopt.remote(peer.state.remote())
                return
        if self._again is None:
            raise ReferenceLost(
                "every reference worker has died, and with them the moving average that they "
                "held: the run goes on from its newest checkpoint. With reference.workers: 2 one "
                "has it from the other"
            )
        await self._again(worker)


async def _as_built(worker: ActorHandle[ReferenceWorker]) -> None:
    """It holds what all held at first."""
