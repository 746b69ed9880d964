"""The hash of weights whose tensors come one by one and are not kept: `content_hash`, in a stream.

Owns the order that this needs (names rise, as in `Weights`) and the bytes that wait for a whole
chunk. Loads no torch.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from manta.actors.cores import available_cores
from manta.actors.weights import ALIGNMENT, HASHED_CHUNK, MAX_THREADS

_WAITING = 2 * MAX_THREADS
"""Chunks that may wait for a thread: their bytes are copies."""


class StreamHash:
    """`add` every tensor in name order, then `close`: the hash that
    `manta.actors.weights.content_hash` takes of the same tensors as one `Weights`."""

    def __init__(self) -> None:
        self._heads: list[tuple[str, str, tuple[int, ...]]] = []
        self._size = 0
        self._rest = bytearray()
        self._digests: list[bytes] = []
        self._threads = ThreadPoolExecutor(max(1, min(MAX_THREADS, available_cores())))
        self._waiting: deque[Future[bytes]] = deque()

    def add(
        self, name: str, dtype: str, shape: tuple[int, ...], octets: npt.NDArray[np.uint8]
    ) -> None:
        """Raises ValueError where `name` does not come after the one before."""
        if self._heads and name <= self._heads[-1][0]:
            raise ValueError(f"tensor {name} came after {self._heads[-1][0]}: send in name order")
        self._heads.append((name, dtype, shape))
        self._append(bytes(-self._size % ALIGNMENT))
        self._append(octets.data)

    def close(self) -> str:
        if self._rest:
            self._hash(bytes(self._rest))
        while self._waiting:
            self._digests.append(self._waiting.popleft().result())
        self._threads.shutdown()
        return hashlib.sha256(repr(self._heads).encode() + b"".join(self._digests)).hexdigest()

    def _append(self, octets: bytes | memoryview) -> None:
        self._size += len(octets)
        start = 0
        while start < len(octets):
            end = min(len(octets), start + HASHED_CHUNK - len(self._rest))
            self._rest += octets[start:end]
            start = end
            if len(self._rest) == HASHED_CHUNK:
                self._hash(bytes(self._rest))
                self._rest.clear()

    def _hash(self, chunk: bytes) -> None:
        self._waiting.append(self._threads.submit(_digest, chunk))
        if len(self._waiting) > _WAITING:
            self._digests.append(self._waiting.popleft().result())


def _digest(chunk: bytes) -> bytes:
    return hashlib.sha256(chunk).digest()
