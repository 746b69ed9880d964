"""A keyed permutation that takes no memory: which index stands where.

Owns the one permutation behind epoch orders and splits. A Feistel network over the next power of
four, walked until the result lies in range (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"), with BLAKE2b as its round function: the same on every machine and for every version of
numpy, which a resumed run relies on.
"""

from __future__ import annotations

import hashlib

ROUNDS = 8


class Shuffle:
    """A permutation of 0..length-1 that `key` decides."""

    def __init__(self, length: int, key: str) -> None:
        self.length = length
        self._key = hashlib.sha256(key.encode()).digest()
        self._half = max(1, ((length - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1

    def __getitem__(self, position: int) -> int:
        """The index at `position`; IndexError outside of 0..length-1."""
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of {self.length}")
        value = self._encrypt(position)
        while value >= self.length:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        left, right = value >> self._half, value & self._mask
        for number in range(ROUNDS):
            block = right.to_bytes(8, "little") + bytes([number])
            digest = hashlib.blake2b(block, digest_size=8, key=self._key).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & self._mask)
        return left << self._half | right
