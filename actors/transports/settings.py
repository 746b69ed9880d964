"""Which transport weights take, as plain values (no torch, ray or pyarrow here)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """A transport by registry name. `folder` is where `disk` puts its files: an absolute path or a
    URI, and nobody else's."""

    name: str = "object_store"
    folder: str | None = None
