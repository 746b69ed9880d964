"""Weights as canonical bytes: one contiguous buffer, an index of named tensors, and a hash.

The hash is taken over names, shapes, dtypes and bytes in name order, so equal weights have equal
hashes wherever they are computed. Every tensor starts at a multiple of `ALIGNMENT` bytes (zeros
fill the gaps), so that it can be viewed in its own type whatever stands before it. Loads no torch:
processes that only pass weights on need none; tensors are `manta.actors.weight_tensors`'s.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manta.actors.cores import available_cores
from manta.envs.records import WeightVersion

ALIGNMENT = 16
"""Bytes; a multiple of the size of every torch number."""
HASHED_CHUNK = 4 << 20
"""Bytes hashed as one; part of what a hash means."""
_MARK = 8
"""Hexadecimal digits of a hash in a label."""
MAX_THREADS = 8
"""More would take cores from whoever computes beside, for little: memory sets the pace."""


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


def label(name: str, sha256: str) -> str:
    """What weights called `name` are called with the start of their hash, `NAME#1a2b3c4d`: tells
    those of one name apart."""
    return f"{name}#{sha256[:_MARK]}"


def content_hash(specs: tuple[TensorSpec, ...], data: npt.NDArray[np.uint8]) -> str:
    """The hash of weights: `tree_hash` over names, dtypes and shapes, then the bytes."""
    return tree_hash(repr([(s.name, s.dtype, s.shape) for s in specs]).encode(), data)


def tree_hash(head: bytes, *parts: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of `head` followed by the SHA-256 of each `HASHED_CHUNK` bytes of each part, which
    threads compute side by side."""
    chunks = [
        part[start : start + HASHED_CHUNK]
        for part in parts
        for start in range(0, len(part), HASHED_CHUNK)
    ]
    threads = min(len(chunks), MAX_THREADS, available_cores())
    if threads <= 1:
        digests = [_digest(chunk) for chunk in chunks]
    else:
        with ThreadPoolExecutor(threads) as pool:
            digests = list(pool.map(_digest, chunks))
    return hashlib.sha256(head + b"".join(digests)).hexdigest()


def _digest(chunk: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(chunk.data).digest()
