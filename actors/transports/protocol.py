"""The transport seam: how weights get from the weight store into the processes of engines.

A transport moves content, full weights or a delta, and never looks into it. Who holds which base,
what to send to whom, and the proof that the right bytes arrived are the same for all: see
`outbox`, `inbox`, `manta.actors.weight_store` and `manta.orchestrator.publish`. One contract test
(`tests/contract/test_transport.py`) holds every transport to it.

The driver sees parcels as references only. A parcel may hold the content itself, or say where it
is. The direct transports, nccl and ipc, send no parcels: learner ranks and the engines' processes
meet (`manta.actors.meeting`), and what must be sent again comes through the store after all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from manta.actors.transports.delta import Delta
from manta.actors.weights import Receipt, Weights
from manta.envs.records import WeightVersion

Content: TypeAlias = Weights | Delta


class BadParcel(ValueError):
    """A parcel that does not bring weights: damaged, gone, or for another base."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Where a parcel's content lies: `path` on the transport's file system, `sha256` of all of its
    `num_bytes`."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """What an engine is handed to get weights `version`.

    `base` is the hash of the weights that the receiver must hold, None for a full copy;
    `num_bytes` is how much one receiver moves.
    """

    version: WeightVersion
    base: str | None
    num_bytes: int
    body: Weights | Delta | StoredFile


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a parcel: the engine's receipt (with an empty hash where the engine got
    nothing to load, because of `refusal`), and the bytes moved."""

    receipt: Receipt
    num_bytes: int
    refusal: str = ""


class Transport(Protocol):
    """Every process builds its own; `send` and `keep_only` are the sender's, `receive` the
    engine's. All may block, and raise OSError where a file system fails the sender."""

    def send(self, content: Content) -> Parcel:
        """Makes `content` ready for any number of receivers."""
        ...

    def receive(self, parcel: Parcel) -> Content:
        """The content as it was sent; its arrays may be read-only.

        Raises BadParcel where it is damaged or gone.
        """
        ...

    def keep_only(self, parcels: tuple[Parcel, ...]) -> None:
        """Removes what was sent before, by this sender or one in an earlier life, except
        `parcels`."""
        ...


def base_of(content: Content) -> str | None:
    return content.base if isinstance(content, Delta) else None


def size_of(content: Content) -> int:
    """Bytes of the content, its index left out."""
    return len(content.encoded) if isinstance(content, Delta) else len(content.data)
