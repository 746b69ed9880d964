"""The rollout worker: a Ray shell over one engine and the inbox that its weights come through."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from manta.actors.alive import Alive
from manta.actors.engine_calls import EngineCalls
from manta.actors.engines.occupancy import Occupancy, RowSeconds
from manta.actors.engines.protocol import EngineDied, OwnsProcesses, Sleeps, TakesTransfers
from manta.actors.engines.registry import build_engine
from manta.actors.engines.settings import EngineSettings
from manta.actors.leases import Ticket
from manta.actors.models.spec import ModelSpec
from manta.actors.transports.inbox import Inbox
from manta.actors.transports.protocol import Delivery, Parcel
from manta.actors.transports.registry import build_transport
from manta.actors.transports.settings import TransportSettings
from manta.actors.weights import Receipt
from manta.envs.packing import PackedCompletions
from manta.envs.records import Float32, GenerateRequest, Int32, WeightVersion


@dataclass(frozen=True, slots=True)
class Renewed:
    """What an engine says of new weights: how busy its rows were since it was paused before, what
    became of the parcel, and the log-probs of the probe; empty where it loaded nothing."""

    rows: RowSeconds
    delivery: Delivery
    probe: tuple[Float32, ...]


class RolloutWorker(Alive):
    """Methods as in `manta.actors.engines.protocol.Engine` and `EngineCalls`; completions travel
    packed, weights in parcels. A worker whose engine died ends its process: that is how Ray tells
    everybody who waits.
    """

    def __init__(
        self,
        settings: EngineSettings,
        model: ModelSpec,
        vocab_size: int,
        seed: int,
        deterministic: bool,
        transport: TransportSettings,
    ) -> None:
        self._occupancy = Occupancy(settings.max_rows)
        self._engine = build_engine(
            settings,
            model,
            vocab_size,
            seed,
            deterministic,
            WeightVersion(0, 0),
            self._occupancy,
            transport.direct,
        )
        self._inbox = Inbox(build_transport(transport))
        self._calls = EngineCalls(self._engine)

    async def generate(
        self, ticket: Ticket, requests: Sequence[GenerateRequest]
    ) -> PackedCompletions:
        with _ending_with_the_engine():
            return await self._calls.generate(ticket, requests)

    async def progress(
        self, ticket: Ticket, known: Sequence[Sequence[int]]
    ) -> PackedCompletions | None:
        return await self._calls.progress(ticket, known)

    async def unfinished(self) -> Mapping[Ticket, int]:
        """See `EngineCalls`: the rows that each call still needs."""
        return self._calls.unfinished()

    async def abandon(self, tickets: Sequence[Ticket]) -> None:
        self._calls.abandon(tickets)

    async def logprobs(self, rows: Sequence[Int32]) -> list[Float32]:
        with _ending_with_the_engine():
            return await self._engine.logprobs(rows)

    async def renew(self, parcel: Parcel, sha256: str, probe: Sequence[Int32]) -> Renewed:
        """Pauses the engine, wakes it if it sleeps, loads the weights with hash `sha256`, and
        scores `probe`. In one call, so that the engine decodes while the parcel is on its way, and
        the driver makes one instead of three."""
        with _ending_with_the_engine():
            rows = await self.pause()
            await self._wake()
            delivery = await self._inbox.deliver(parcel, self._engine.load)
            if delivery.receipt.sha256 != sha256:
                # An engine that slept has no weights to score with
                return Renewed(rows, delivery, ())
            return Renewed(rows, delivery, tuple(await self._engine.logprobs(probe)))

    async def pause(self) -> RowSeconds:
        """Pauses the engine; how busy its rows were since the last time."""
        with _ending_with_the_engine():
            await self._engine.pause()
        return self._occupancy.take()

    async def sleep(self) -> None:
        """Pauses the engine and frees its memory; one that has none to free is only paused."""
        with _ending_with_the_engine():
            await self._engine.pause()
            if isinstance(self._engine, Sleeps):
                await self._engine.sleep()

    async def open_transfer(self, info: Mapping[str, object]) -> None:
        """These four: see `manta.actors.engines.protocol.TakesTransfers`. The paused engine wakes
        first if it sleeps, as it does to `renew`."""
        with _ending_with_the_engine():
            await self._wake()
            await self._taker.open_transfer(info)

    async def begin_transfer(self, num_bytes: int) -> None:
        with _ending_with_the_engine():
            # Ranks that met this engine before do not open again
            await self._wake()
            await self._taker.begin_transfer(num_bytes)

    async def take_transfer(self, info: Mapping[str, object]) -> None:
        with _ending_with_the_engine():
            await self._taker.take_transfer(info)

    async def end_transfer(self, version: WeightVersion, sha256: str) -> Receipt:
        with _ending_with_the_engine():
            return await self._taker.end_transfer(version, sha256)

    async def _wake(self) -> None:
        if isinstance(self._engine, Sleeps):
            await self._engine.wake()

    @property
    def _taker(self) -> TakesTransfers:
        assert isinstance(self._engine, TakesTransfers), "checked before the run"
        return self._engine

    async def resume(self) -> None:
        await self._engine.resume()

    async def close(self) -> None:
        if isinstance(self._engine, OwnsProcesses):
            await self._engine.end_processes()


@contextmanager
def _ending_with_the_engine() -> Iterator[None]:
    try:
        yield
    except EngineDied:
        os._exit(1)
