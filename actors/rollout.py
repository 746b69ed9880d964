"""The rollout worker: a Ray shell over one engine and the inbox that its weights come through."""

from __future__ import annotations

from collections.abc import Sequence

from manta.actors.engines.registry import build_engine
from manta.actors.engines.settings import EngineSettings
from manta.actors.models.spec import ModelSpec
from manta.actors.transports.inbox import Inbox
from manta.actors.transports.protocol import Delivery, Parcel
from manta.actors.transports.registry import build_transport
from manta.actors.transports.settings import TransportSettings
from manta.envs.packing import PackedCompletions, pack_completions
from manta.envs.records import Float32, GenerateRequest, Int32, WeightVersion


class RolloutWorker:
    """Methods as in `manta.actors.engines.protocol.Engine`; completions travel packed, weights in
    parcels."""

    def __init__(
        self,
        settings: EngineSettings,
        model: ModelSpec,
        vocab_size: int,
        seed: int,
        deterministic: bool,
        transport: TransportSettings,
    ) -> None:
        self._engine = build_engine(
            settings, model, vocab_size, seed, deterministic, WeightVersion(0, 0)
        )
        self._inbox = Inbox(build_transport(transport))

    async def generate(self, requests: Sequence[GenerateRequest]) -> PackedCompletions:
        return pack_completions(await self._engine.generate(requests))

    async def logprobs(self, rows: Sequence[Int32]) -> list[Float32]:
        return await self._engine.logprobs(rows)

    async def pause(self) -> None:
        await self._engine.pause()

    async def load(self, parcel: Parcel) -> Delivery:
        return await self._inbox.deliver(parcel, self._engine.load)

    async def resume(self) -> None:
        await self._engine.resume()
