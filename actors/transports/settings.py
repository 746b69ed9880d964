"""Which transport weights take, as plain values (no torch, ray or pyarrow here)."""

from __future__ import annotations

from dataclasses import dataclass

DIRECT = ("nccl", "ipc")
"""vLLM's own ways between GPUs: learner ranks send to the engines' worker processes themselves."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """A transport by the run file's name. `folder` is where `disk` puts its files: an absolute path
    or a URI, and nobody else's."""

    name: str = "object_store"
    folder: str | None = None

    @property
    def direct(self) -> str | None:
        """The transport that goes around the weight store, if it is one."""
        return self.name if self.name in DIRECT else None

    @property
    def of_store(self) -> str:
        """What moves parcels of the weight store: with a direct transport, weights that are sent a
        second time, and those for whom no learner sends."""
        return "object_store" if self.direct else self.name
