"""Deltas: what turns weights that a receiver holds into newer ones, lossless and in few bytes.

Owns the record, cutting weights into chunks and the threads that work on them (numpy, zstd and
SHA-256 all let go of the interpreter's lock). How a chunk becomes small is in
`manta.actors.transports.chunk_codec`; how bytes get from here to there is a transport's business.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from manta.actors.cores import available_cores
from manta.actors.transports.chunk_codec import (
    Bytes,
    Damaged,
    Words,
    apply_chunk,
    encode_chunk,
)
from manta.actors.weights import ALIGNMENT, MAX_THREADS, TensorSpec, Weights
from manta.envs.records import WeightVersion

CHUNK_WORDS = 1 << 19
"""Few enough that a chunk's intermediate arrays stay in a core's cache."""
WORTH_IT = 4.0
"""How many times smaller than a full copy a delta must be: one that saves less takes longer to
make than a fast network, or memory that is shared, takes for the full copy."""
_SAMPLES, _SAMPLE_WORDS = 8, 1 << 15
_SIZE = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Delta:
    """Turns the weights with hash `base` into `version`, whose hash is `sha256`.

    `encoded` uint8[bytes]: for each chunk its size (uint32), then the chunks.
    """

    version: WeightVersion
    base: str
    sha256: str
    encoded: Bytes


def difference(base: Weights, new: Weights, worth: float = WORTH_IT) -> Delta | None:
    """The delta from `base` to `new`; None where it is not at least `worth` (1 or more) times
    smaller than a full copy, or where the two are not of one model."""
    if base.specs != new.specs or len(base.data) != len(new.data):
        return None
    olds, news = list(_chunks(base.specs, base.data)), list(_chunks(new.specs, new.data))
    if len(olds) > 1 and _expected(olds, news) < worth:
        return None
    with ThreadPoolExecutor(_num_threads(len(olds))) as threads:
        chunks = list(threads.map(encode_chunk, olds, news))
    sizes = b"".join(_SIZE.pack(len(chunk)) for chunk in chunks)
    encoded = np.frombuffer(b"".join([sizes, *chunks]), np.uint8)
    if len(encoded) * worth >= len(new.data):
        return None
    return Delta(new.version, base.sha256, new.sha256, encoded)


def apply(delta: Delta, specs: tuple[TensorSpec, ...], data: Bytes) -> None:
    """Turns `data` (the delta's base, canonical bytes of `specs`) into its result, in place.

    Raises Damaged where `delta` cannot be one of these weights; `data` is of no use then. Bytes
    that decode are not proven right by that: compare the result's hash.
    """
    words = list(_chunks(specs, data))
    parts = _parts(delta.encoded, len(words))
    with ThreadPoolExecutor(_num_threads(len(words))) as threads:
        list(threads.map(apply_chunk, parts, words))


def _parts(encoded: Bytes, count: int) -> list[memoryview]:
    rest = np.ascontiguousarray(encoded).data
    head = count * _SIZE.size
    if len(rest) < head:
        raise Damaged(f"a delta of {len(rest)} bytes has no sizes of {count} chunks")
    sizes = [size for (size,) in _SIZE.iter_unpack(rest[:head])]
    if head + sum(sizes) != len(rest):
        raise Damaged(f"a delta of {len(rest)} bytes should have {head + sum(sizes)}")
    ends = head + np.cumsum([0, *sizes])
    return [rest[start:end] for start, end in pairwise(ends.tolist())]


def _expected(olds: Sequence[Words], news: Sequence[Words]) -> float:
    """How many times smaller the delta will be, by a sample: making it in vain costs time."""
    places = np.unique(np.linspace(0, len(olds) - 1, _SAMPLES).astype(int)).tolist()
    pairs = [(olds[i][:_SAMPLE_WORDS], news[i][:_SAMPLE_WORDS]) for i in places]
    full = sum(new.nbytes for _, new in pairs)
    small = sum(len(encode_chunk(old, new)) for old, new in pairs)
    return float(full / small)


def _num_threads(chunks: int) -> int:
    return max(1, min(chunks, MAX_THREADS, available_cores()))


def _chunks(specs: tuple[TensorSpec, ...], data: Bytes) -> Iterator[Words]:
    """Views that together cover `data`, in words of the tensors' own size (at most 4 bytes: half
    an 8-byte number is as good a word)."""
    for start, end, width in _runs(specs, len(data)):
        words = data[start:end].view(f"u{width}")
        for first in range(0, len(words), CHUNK_WORDS):
            yield words[first : first + CHUNK_WORDS]


def _runs(specs: tuple[TensorSpec, ...], size: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, bytes a word) of neighbouring tensors whose words are equally long. Gaps belong
    to the tensor before them."""
    widths = [
        (spec.start, min(4, (spec.end - spec.start) // math.prod(spec.shape)))
        for spec in specs
        if spec.end > spec.start
    ]
    firsts = [i for i, (_, width) in enumerate(widths) if i == 0 or widths[i - 1][1] != width]
    starts = [widths[i][0] for i in firsts]
    assert all(start % ALIGNMENT == 0 for start in starts)
    for i, start, end in zip(firsts, starts, [*starts[1:], size], strict=True):
        yield start, end, widths[i][1]
