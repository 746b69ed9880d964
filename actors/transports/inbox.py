"""The receiver's end in an engine's process: holds canonical bytes and brings them up to date.

Owns the base that deltas are applied to. Whether an engine then serves what it was handed is the
engine's proof and the publisher's judgement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from manta.actors.transports.chunk_codec import Damaged
from manta.actors.transports.delta import Delta, apply
from manta.actors.transports.protocol import BadParcel, Delivery, Parcel, Transport
from manta.actors.weights import Receipt, Weights


class Inbox:
    """Bytes are held from the first delivery on: first the received array itself, then, once a
    delta came, a copy that later deltas change in place."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._held: Weights | None = None
        self._is_own = False

    async def deliver(
        self, parcel: Parcel, load: Callable[[Weights], Awaitable[Receipt]]
    ) -> Delivery:
        """Opens `parcel` and gives its weights to `load` (an engine's), which must keep no view of
        their bytes. Weights whose receipt is wrong are no base for later deltas."""
        try:
            weights = await asyncio.to_thread(self.open, parcel)
        except BadParcel as refusal:
            return Delivery(Receipt(parcel.version, ""), parcel.num_bytes, str(refusal))
        receipt = await load(weights)
        if receipt.sha256 != weights.sha256:
            self._held = None
        return Delivery(receipt, parcel.num_bytes)

    def open(self, parcel: Parcel) -> Weights:
        """The full weights of `parcel`, not yet hashed.

        Raises BadParcel where it is damaged, or a delta from weights that are not held.
        """
        content = self._transport.receive(parcel)
        if isinstance(content, Delta):
            weights = self._updated(content)
        else:
            weights, self._is_own = content, False
        self._held = weights
        return weights

    def _updated(self, delta: Delta) -> Weights:
        held = self._held
        if held is None or held.sha256 != delta.base:
            found = "nothing" if held is None else f"weights {held.version}"
            raise BadParcel(
                f"weights {delta.version} came as a delta from {delta.base[:12]}, but the engine "
                f"holds {found}"
            )
        # What fails from here on leaves bytes that are neither the old weights nor the new
        self._held = None
        data = held.data if self._is_own else held.data.copy()
        self._is_own = True
        try:
            apply(delta, held.specs, data)
        except Damaged as damage:
            raise BadParcel(f"weights {delta.version}: {damage}") from damage
        return Weights(delta.version, held.specs, data, delta.sha256)
