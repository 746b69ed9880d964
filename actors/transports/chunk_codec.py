"""The difference between two equally long arrays of words, small and exact to the bit.

Owns one chunk: which form it takes and how its byte streams are packed. Words are the bit patterns
of weights as unsigned integers of 1, 2 or 4 bytes, and a difference is taken modulo their range,
where a small step of a weight is a small number. Cutting weights into chunks is
`manta.actors.transports.delta`'s.

Forms, whichever is smaller:
- sparse: where words changed (gaps between positions, a byte each, 255 meaning "and further"), in
  which direction (a bit each), by how much (byte planes). A step of fixed size changes the bit
  pattern of a small weight far more often than that of a large one, so words below a threshold of
  magnitude are counted as a sequence of their own; the receiver finds the same ones in its base.
- dense: the byte planes of every difference.
- raw: the new words, where nothing else is smaller.
Streams go through zstd, whose entropy coder brings gaps close to what positions need at least.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Places: TypeAlias = npt.NDArray[np.int64]

_SAME, _SPARSE, _DENSE, _RAW = range(4)
_ZEROS, _STORED, _ZSTD = range(3)
_STREAM = struct.Struct("<BII")
_GROUP = struct.Struct("<I")
_FORM = struct.Struct("<BB")
_FAR = 255
"""A gap's byte that adds itself and goes on."""
_DENSE_FROM = 0.45
"""Share of changed words; above it, positions cost more than a plane of mostly small numbers."""
_SAMPLE_STRIDE = 17
"""Not a power of two, so that a sample of a matrix meets all of its columns."""
_MIN_SAMPLED = 1 << 16
_WORTH_A_SPLIT = 0.97


class Damaged(ValueError):
    """Bytes that are no delta, or not one of these weights."""


def encode_chunk(old: Words, new: Words) -> bytes:
    """What turns `old` into `new`, both uintB[N]. Never more than a few bytes above `new`'s own."""
    step = new - old
    places = _changed(step)
    if len(places) == 0:
        return _FORM.pack(_SAME, 0)
    if len(places) < _DENSE_FROM * len(old):
        encoded = _sparse(old, step, places)
    else:
        encoded = _FORM.pack(_DENSE, 0) + _planes(_zigzag(step))
    if len(encoded) < _FORM.size + new.nbytes:
        return encoded
    return _FORM.pack(_RAW, 0) + new.tobytes()


def apply_chunk(encoded: memoryview, words: Words) -> None:
    """Turns `words`, the encoder's `old`, into its `new`, in place.

    Raises Damaged, perhaps after some words have changed.
    """
    reader = _Reader(encoded)
    form, threshold = reader.unpack(_FORM)
    if form == _SPARSE:
        _apply_sparse(reader, words, threshold)
    elif form == _DENSE:
        words += _unzigzag(reader.planes(len(words), words.dtype))
    elif form == _RAW:
        words[:] = np.frombuffer(reader.take(words.nbytes), words.dtype)
    elif form != _SAME:
        raise Damaged(f"a delta's chunk has form {form}, which is none")
    reader.end()


def _changed(step: Words) -> Places:
    """Where `step` is not 0. Looks at eight bytes at a time, since most are 0."""
    per_word = 8 // step.itemsize
    whole = len(step) // per_word * per_word
    blocks = np.flatnonzero(step[:whole].view(np.uint64))
    block, place = np.nonzero(step[:whole].reshape(-1, per_word)[blocks])
    tail = np.flatnonzero(step[whole:]) + whole
    return np.concatenate([blocks[block] * per_word + place, tail])


def _sparse(old: Words, step: Words, places: Places) -> bytes:
    threshold = _threshold(old, step)
    if threshold == 0:
        return _FORM.pack(_SPARSE, 0) + _group(places, step[places])
    small = np.flatnonzero(_is_small(old, threshold))
    small_step = step[small]
    small_places = np.flatnonzero(small_step)
    large_places = places[~_is_small(old[places], threshold)]
    return (
        _FORM.pack(_SPARSE, threshold)
        + _group(small_places, small_step[small_places])
        + _group(large_places, step[large_places])
    )


def _apply_sparse(reader: _Reader, words: Words, threshold: int) -> None:
    if threshold and words.itemsize == 1:
        raise Damaged("a delta's chunk splits words of one byte, which have no exponent")
    if threshold == 0:
        places, step = reader.group(len(words), words.dtype)
        words[places] += step
        return
    small = np.flatnonzero(_is_small(words, threshold))
    small_places, small_step = reader.group(len(small), words.dtype)
    large_places, large_step = reader.group(len(words), words.dtype)
    words[small[small_places]] += small_step
    words[large_places] += large_step


def _is_small(words: Words, threshold: int) -> npt.NDArray[np.bool_]:
    bits = 8 * words.itemsize
    magnitude = words & words.dtype.type((1 << (bits - 1)) - 1)
    return magnitude < words.dtype.type(threshold << (bits - 9))


def _threshold(old: Words, step: Words) -> int:
    """The exponent (sign left out, eight bits) below which words are counted apart, by what the
    positions of a sample would cost; 0 where that saves little."""
    if old.itemsize == 1:
        return 0
    stride = _SAMPLE_STRIDE if len(old) > _MIN_SAMPLED else 1
    bits = 8 * old.itemsize
    keys = (old[::stride] & old.dtype.type((1 << (bits - 1)) - 1)) >> old.dtype.type(bits - 9)
    total = np.bincount(keys, minlength=256)
    changed = np.bincount(keys[step[::stride] != 0], minlength=256)
    below, below_changed = np.cumsum(total)[:-1], np.cumsum(changed)[:-1]
    costs = _cost(below, below_changed) + _cost(total.sum() - below, changed.sum() - below_changed)
    best = int(np.argmin(costs))
    whole = _cost(total.sum()[None], changed.sum()[None])[0] + changed.sum()
    return best + 1 if costs[best] + changed.sum() < _WORTH_A_SPLIT * whole else 0


def _cost(total: npt.NDArray[Any], changed: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Bits that tell which `changed` of `total` words changed, at least (their entropy)."""
    cost = np.zeros(len(total))
    for count in (changed, total - changed):
        share = np.maximum(count, 1) / np.maximum(total, 1)
        cost -= count * np.log2(share)
    return cost


def _group(places: Places, step: Words) -> bytes:
    """Rising `places` and the changes there, none of them 0."""
    gaps = np.diff(places, prepend=-1) - 1
    far = gaps // _FAR
    last = np.cumsum(far + 1) - 1
    gap_bytes = np.full(int(last[-1]) + 1 if len(last) else 0, _FAR, np.uint8)
    gap_bytes[last] = gaps - far * _FAR
    signed = step.view(_signed(step.dtype))
    sizes = np.abs(signed).view(step.dtype) - step.dtype.type(1)
    signs = np.packbits(signed < 0)
    return _GROUP.pack(len(places)) + _stream(gap_bytes) + _stream(signs) + _planes(sizes)


def _planes(words: Words) -> bytes:
    """First the lowest bytes of all words, then the next, each plane a stream."""
    octets = words.view(np.uint8).reshape(len(words), words.itemsize)
    return b"".join(
        _stream(np.ascontiguousarray(octets[:, plane])) for plane in range(words.itemsize)
    )


def _stream(octets: Bytes) -> bytes:
    if not octets.any():
        return _STREAM.pack(_ZEROS, len(octets), 0)
    packed: bytes = _ZSTD_CODEC.compress(octets, asbytes=True)
    if len(packed) < len(octets):
        return _STREAM.pack(_ZSTD, len(octets), len(packed)) + packed
    return _STREAM.pack(_STORED, len(octets), len(octets)) + octets.tobytes()


_ZSTD_CODEC = pa.Codec("zstd", compression_level=1)
"""Higher levels take twice the time and save nothing: there are no repetitions to be found."""


class _Reader:
    """Reads what the functions above wrote, front to back."""

    def __init__(self, encoded: memoryview) -> None:
        self._rest = encoded

    def take(self, size: int) -> memoryview:
        if size > len(self._rest):
            raise Damaged(f"a delta's chunk ends {size - len(self._rest)} bytes early")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def end(self) -> None:
        if len(self._rest):
            raise Damaged(f"a delta's chunk has {len(self._rest)} bytes too many")

    def stream(self, limit: int) -> Bytes:
        """At most `limit` bytes."""
        kind, size, packed_size = self.unpack(_STREAM)
        packed = self.take(packed_size)
        if size > limit:
            raise Damaged(f"a delta's stream claims {size} bytes where at most {limit} can be")
        if kind == _ZEROS:
            return np.zeros(size, np.uint8)
        if kind == _STORED:
            return np.frombuffer(packed, np.uint8)
        try:
            octets = _ZSTD_CODEC.decompress(pa.py_buffer(packed), decompressed_size=size)
        except (OSError, ValueError) as error:
            raise Damaged(f"a delta's stream cannot be decompressed: {error}") from error
        return np.frombuffer(octets, np.uint8)

    def planes(self, count: int, dtype: np.dtype[Any]) -> Words:
        octets = np.empty((count, dtype.itemsize), np.uint8)
        for plane in range(dtype.itemsize):
            stream = self.stream(count)
            if len(stream) != count:
                raise Damaged(f"a delta's plane holds {len(stream)} bytes, not {count}")
            octets[:, plane] = stream
        words: Words = octets.reshape(-1).view(dtype)
        return words

    def group(self, length: int, dtype: np.dtype[Any]) -> tuple[Places, Words]:
        """Places below `length`, and the changes there."""
        [count] = self.unpack(_GROUP)
        gap_bytes = self.stream(length + length // _FAR + 1)
        last = np.flatnonzero(gap_bytes != _FAR)
        signs = self.stream(length // 8 + 1)
        if count != len(last) or len(signs) != -(-count // 8):
            raise Damaged(f"a delta names {len(last)} changes, not {count}")
        places = np.cumsum(gap_bytes, dtype=np.int64)[last] + np.arange(count)
        if count and places[-1] >= length:
            raise Damaged(f"a delta changes word {places[-1]} of {length}")
        sizes = self.planes(count, dtype) + dtype.type(1)
        is_negative = np.unpackbits(signs, count=count).astype(bool)
        return places, np.where(is_negative, np.negative(sizes), sizes)


def _signed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"i{dtype.itemsize}")


def _zigzag(step: Words) -> Words:
    """0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    sign = step.view(_signed(step.dtype)) >> (8 * step.itemsize - 1)
    zigzag: Words = (step << step.dtype.type(1)) ^ sign.view(step.dtype)
    return zigzag


def _unzigzag(zigzag: Words) -> Words:
    one = zigzag.dtype.type(1)
    step: Words = (zigzag >> one) ^ np.negative(zigzag & one)
    return step
