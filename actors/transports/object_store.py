"""The object-store transport: parcels hold their content, and Ray moves it to where it is read.

One parcel is one object: engines of a node share it, other nodes pull a copy each.
"""

from __future__ import annotations

from manta.actors.transports.delta import Delta
from manta.actors.transports.protocol import BadParcel, Content, Parcel, base_of, size_of
from manta.actors.weights import Weights


class ObjectStoreTransport:
    """See `manta.actors.transports.protocol.Transport`."""

    def send(self, content: Content) -> Parcel:
        return Parcel(content.version, base_of(content), size_of(content), content)

    def receive(self, parcel: Parcel) -> Content:
        if not isinstance(parcel.body, Weights | Delta):
            raise BadParcel(
                f"weights {parcel.version} lie in {parcel.body.path}, not in the parcel"
            )
        return parcel.body

    def keep_only(self, parcels: tuple[Parcel, ...]) -> None:
        """Nothing lies around: an object goes with the last reference to it."""
