"""Uniform numbers by counter: what a (seed, index) pair draws, whoever asks and whenever.

Owns the hash. A sample's randomness is a function of its own seed and of how many tokens it has,
never of a generator's state, so neither its neighbours in a batch nor timing can change it.

The hash is two rounds of SplitMix64's finalizer (Steele, Lea, Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014): `mix(mix(seed) + (index + 1) * golden_gamma)`. Mixing the seed
first keeps the streams of neighbouring seeds apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 52


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic on int64."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: Tensor) -> Tensor:
    """SplitMix64's finalizer of int64 values, any shape; products wrap around."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def seed_tensor(seeds: tuple[int, ...]) -> Tensor:
    """int64[N] of the low 64 bits of each seed."""
    return torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64)


def uniform(seeds: Tensor, indices: Tensor) -> Tensor:
    """float64 in [0, 1), a multiple of 2**-52; int64 `seeds` and `indices` broadcast.

    52 bits, so that `u * total < total` holds in float64 for every positive total.
    """
    hashed = mix(mix(seeds) + (indices + 1) * _GAMMA)
    return _shifted(hashed, 64 - _BITS).to(torch.float64) * 2.0**-_BITS
