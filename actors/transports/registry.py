"""Transports of the weight store's parcels, by the name that the run file uses."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from manta.actors.transports.disk import DiskTransport
from manta.actors.transports.object_store import ObjectStoreTransport
from manta.actors.transports.protocol import Transport
from manta.actors.transports.settings import DIRECT, TransportSettings


def _object_store(_: TransportSettings) -> Transport:
    return ObjectStoreTransport()


def _disk(settings: TransportSettings) -> Transport:
    if settings.folder is None:
        raise ValueError("publish.path: transport 'disk' needs a folder or a URI")
    return DiskTransport(settings.folder)


TRANSPORTS: dict[str, Callable[[TransportSettings], Transport]] = {
    "object_store": _object_store,
    "disk": _disk,
}


def build_transport(settings: TransportSettings) -> Transport:
    """What moves parcels of the weight store.

    Raises ValueError for an unknown name, or a folder that is missing or not understood.
    """
    builder = TRANSPORTS.get(settings.of_store)
    if builder is None:
        names = sorted([*TRANSPORTS, *DIRECT])
        near = difflib.get_close_matches(settings.name, names, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f": choose one of {names}"
        raise ValueError(f"publish.transport is {settings.name!r}, which is no transport{hint}")
    return builder(settings)
