"""Weights as canonical bytes: one contiguous buffer, an index of named tensors, and a hash.

The hash is taken over names, shapes, dtypes and bytes in name order, so equal weights have equal
hashes wherever they are computed. Every tensor starts at a multiple of `ALIGNMENT` bytes (zeros
fill the gaps), so that it can be viewed in its own type whatever stands before it. Loads no torch:
processes that only pass weights on need none; tensors are `manta.actors.weight_tensors`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manta.envs.records import WeightVersion

ALIGNMENT = 16
"""Bytes; a multiple of the size of every torch number."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Weights:
    """`data` uint8[bytes] holds the tensors of `specs` in name order, each aligned."""

    version: WeightVersion
    specs: tuple[TensorSpec, ...]
    data: npt.NDArray[np.uint8]
    sha256: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of delivery: the hash an engine process computed over the bytes it was handed."""

    version: WeightVersion
    sha256: str


def content_hash(specs: tuple[TensorSpec, ...], data: npt.NDArray[np.uint8]) -> str:
    """SHA-256 over the index and the bytes."""
    digest = hashlib.sha256(repr([(s.name, s.dtype, s.shape) for s in specs]).encode())
    digest.update(data.data)
    return digest.hexdigest()
