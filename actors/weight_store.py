"""The weight store: holds the newest weights for engines and joiners, and hands out parcels.

The learner's rank 0 puts, in full or as a delta, which the store folds into its snapshot; what
`parcel` returns belongs to the caller, so the driver owns the object that engines read. A parcel is
made once, whoever asks for it. Verifying what arrived at an engine is the publisher's part.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from manta.actors.alive import Alive
from manta.actors.transports.chunk_codec import Bytes, Damaged
from manta.actors.transports.delta import Delta, apply
from manta.actors.transports.protocol import Content, Parcel
from manta.actors.transports.registry import build_transport
from manta.actors.transports.settings import TransportSettings
from manta.actors.weights import Weights, content_hash
from manta.envs.records import WeightVersion


class WeightsReplaced(ValueError):
    """The weights that were asked for are gone: the store has newer ones."""


class WeightStore(Alive):
    def __init__(self, transport: TransportSettings) -> None:
        self._transport = build_transport(transport)
        self._transport.keep_only(())
        self._version: WeightVersion | None = None
        self._delta: Delta | None = None
        self._snapshot: asyncio.Task[Weights | None] | None = None
        self._spare: Bytes | None = None
        self._parcels: dict[bool, asyncio.Task[Parcel]] = {}
        self._changed = asyncio.Condition()

    async def put(self, content: Content) -> bool:
        """Takes over newer weights; False where a delta's base is not what the store holds.

        Keeps copies of its own: the object that carried `content` dies with its sender.
        """
        if isinstance(content, Delta):
            base = await self._held()
            if base is None or base.sha256 != content.base:
                return False
            content = replace(content, encoded=content.encoded.copy())
            snapshot = asyncio.to_thread(_fold, base, content, self._spare)
            self._spare = base.data
        else:
            snapshot = asyncio.to_thread(_copy, content)
        async with self._changed:
            self._snapshot = asyncio.create_task(snapshot)
            self._version = content.version
            self._delta = content if isinstance(content, Delta) else None
            self._parcels = {}
            self._changed.notify_all()
        await asyncio.to_thread(self._transport.keep_only, ())
        if self._delta is None:
            await self._snapshot
        return True

    async def parcel(
        self, version: WeightVersion, base: str | None, afresh: bool = False
    ) -> Parcel:
        """What brings a receiver that holds `base` (None: nothing of use) to `version`; waits
        until `version` is there. In full unless the learner sent a delta from `base`; `afresh`
        makes the parcel again, since the one that there was may be damaged.

        Raises WeightsReplaced where a newer version has replaced it, ValueError where the snapshot
        was damaged.
        """
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._version is not None and self._version >= version
            )
        if self._version != version:
            raise WeightsReplaced(f"weights {version} were replaced by {self._version}")
        is_delta = self._delta is not None and self._delta.base == base
        if afresh or is_delta not in self._parcels:
            self._parcels[is_delta] = asyncio.create_task(self._pack(is_delta))
        return await asyncio.shield(self._parcels[is_delta])

    async def _pack(self, is_delta: bool) -> Parcel:
        content: Content | None = self._delta if is_delta else await self._held()
        if content is None:
            raise ValueError(f"weights {self._version}: the weight store's snapshot is damaged")
        return await asyncio.to_thread(self._transport.send, content)

    async def _held(self) -> Weights | None:
        return None if self._snapshot is None else await self._snapshot


def _copy(weights: Weights) -> Weights:
    return replace(weights, data=weights.data.copy())


def _fold(base: Weights, delta: Delta, spare: Bytes | None) -> Weights | None:
    """The weights after `delta`, None where they are not as their hash says, so that the next ones
    are put in full. Uses the memory of `spare`, the snapshot before `base` (fresh memory costs more
    than the copy); `base` itself may be on its way to a joiner."""
    if spare is None or len(spare) != len(base.data):
        data = base.data.copy()
    else:
        data = spare
        data[:] = base.data
    try:
        apply(delta, base.specs, data)
    except Damaged:
        return None
    if content_hash(base.specs, data) != delta.sha256:
        return None
    return Weights(delta.version, base.specs, data, delta.sha256)
