from __future__ import annotations

import numpy as np
import torch

from manta.actors.engines.draws import mix, seed_tensor, uniform


def reference_mix(value: int) -> int:
    """SplitMix64's finalizer in Python integers."""
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def reference_uniform(seed: int, index: int) -> float:
    mask = (1 << 64) - 1
    hashed = reference_mix((reference_mix(seed & mask) + (index + 1) * 0x9E3779B97F4A7C15) & mask)
    return (hashed >> 12) / 2**52


def test_the_hash_is_splitmix64() -> None:
    # The published generator's first outputs at seed 1234567 are mixes of multiples of its gamma.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for index, want in enumerate(known, start=1):
        state = (1234567 + index * 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
        got = int(mix(seed_tensor((state,)))) & ((1 << 64) - 1)
        assert got == want == reference_mix(state)


def test_uniforms_equal_the_reference_for_seeds_of_any_size() -> None:
    seeds = (0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**70 + 3)
    got = uniform(seed_tensor(seeds)[:, None], torch.arange(5)[None])
    want = [[reference_uniform(seed, index) for index in range(5)] for seed in seeds]
    assert got.dtype == torch.float64
    assert got.tolist() == want


def test_uniforms_of_neighbouring_seeds_and_indices_are_even_and_independent() -> None:
    draws = uniform(torch.arange(400)[:, None], torch.arange(400)[None]).numpy()
    assert 0.0 <= draws.min() <= draws.max() < 1.0
    counts, _ = np.histogram(draws, bins=100, range=(0.0, 1.0))
    chi_square = float(((counts - 1600) ** 2 / 1600).sum())
    # 99 degrees of freedom: mean 99, standard deviation 14.
    assert 50 < chi_square < 160
    for shifted in (draws[1:], draws[:, 1:]):
        rest = draws[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.corrcoef(rest.ravel(), shifted.ravel())[0, 1]) < 0.01
