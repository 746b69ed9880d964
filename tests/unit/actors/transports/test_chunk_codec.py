"""Any two arrays of words, and back, to the bit; and what a small step costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.actors.transports.chunk_codec import Damaged, Words, apply_chunk, encode_chunk

HEADER = 2


def round_trip(old: Words, new: Words) -> bytes:
    """The encoded difference, once it gave `new` back."""
    encoded = encode_chunk(old, new)
    words = old.copy()
    apply_chunk(memoryview(encoded), words)
    assert np.array_equal(words, new)
    return encoded


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Words, Words]:
    """Words of every width, of which any share changed by steps of any size."""
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2", "u4"])))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(0, 3000))
    old = generator.integers(0, 2 ** (8 * dtype.itemsize), size, dtype=dtype)
    if draw(st.booleans()):
        old &= dtype.type(draw(st.integers(0, 255)))
    largest = draw(st.sampled_from([1, 3, 300, 2**31]))
    steps = generator.integers(-largest, largest + 1, size).astype(dtype)
    share = draw(st.sampled_from([0.0, 1e-3, 0.02, 0.2, 0.5, 1.0]))
    return old, old + np.where(generator.random(size) < share, steps, 0).astype(dtype)


@given(pairs())
@settings(max_examples=300, deadline=None)
def test_any_change_comes_back_to_the_bit_and_never_costs_more_than_the_words(
    pair: tuple[Words, Words],
) -> None:
    old, new = pair
    assert len(round_trip(old, new)) <= HEADER + new.nbytes


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_extremes(dtype: str) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    values = np.array([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1], dtype)
    old, new = np.repeat(values, 5), np.tile(values, 5)
    round_trip(old, new)
    far = np.zeros(100_000, dtype)
    changed = far.copy()
    changed[[0, 254, 255, 256, 255 * 3, 255 * 4 + 256, 99_999]] = 2 ** (bits - 1)
    assert len(round_trip(far, changed)) < 200


def test_nothing_changed_costs_nothing() -> None:
    words = np.arange(1000, dtype=np.uint16)
    assert len(round_trip(words, words.copy())) == HEADER
    empty = np.zeros(0, np.uint32)
    assert len(round_trip(empty, empty)) == HEADER


def test_noise_costs_its_own_size() -> None:
    generator = np.random.default_rng(0)
    old, new = generator.integers(0, 2**32, (2, 5000), np.uint32)
    assert len(round_trip(old, new)) == HEADER + new.nbytes


def test_uniform_sparse_changes_cost_little_more_than_their_entropy() -> None:
    """2% of words, each one up or one down: H(0.02) + 0.02 bits a word, by Shannon."""
    generator = np.random.default_rng(1)
    old = generator.integers(0x3F80, 0x4000, 1 << 19).astype(np.uint16)
    changed = generator.random(len(old)) < 0.02
    new = old + np.where(changed, generator.choice([1, -1], len(old)), 0).astype(np.uint16)
    entropy = len(old) * (0.02 * np.log2(1 / 0.02) + 0.98 * np.log2(1 / 0.98) + 0.02) / 8
    assert len(round_trip(old, new)) < 1.05 * entropy


def test_small_words_that_change_more_often_are_counted_apart() -> None:
    """Two kinds of words, mixed: the cost stays near the entropy of each kind by itself."""
    generator = np.random.default_rng(2)
    is_small = generator.random(1 << 19) < 0.05
    old = np.where(is_small, 0x3000, 0x3F80).astype(np.uint16)
    share = np.where(is_small, 0.5, 0.005)
    new = old + (generator.random(len(old)) < share).astype(np.uint16)
    entropy = len(old) * (0.05 * 1.0 + 0.95 * (0.005 * np.log2(200) + 0.995 * np.log2(1 / 0.995)))
    mixed = float(np.mean(share))
    blind = len(old) * (mixed * np.log2(1 / mixed) + (1 - mixed) * np.log2(1 / (1 - mixed)))
    assert 8 * len(round_trip(old, new)) < 0.75 * blind
    assert entropy < 0.6 * blind


def encoded_example() -> tuple[Words, bytes]:
    generator = np.random.default_rng(3)
    old = generator.integers(0, 2**16, 4000).astype(np.uint16)
    return old, encode_chunk(old, old + (generator.random(4000) < 0.05).astype(np.uint16))


def test_a_chunk_that_is_cut_or_goes_on_is_damaged() -> None:
    old, encoded = encoded_example()
    for size in range(len(encoded)):
        with pytest.raises(Damaged):
            apply_chunk(memoryview(encoded[:size]), old.copy())
    with pytest.raises(Damaged, match="1 bytes too many"):
        apply_chunk(memoryview(encoded + b"\0"), old.copy())


@given(st.integers(0, 10**9), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_is_damage_or_other_words_but_never_another_error(
    place: int, flip: int
) -> None:
    old, encoded = encoded_example()
    broken = bytearray(encoded)
    broken[place % len(broken)] ^= flip
    words = old.copy()
    try:
        apply_chunk(memoryview(bytes(broken)), words)
    except Damaged as damage:
        assert "delta" in str(damage)
    assert words.shape == old.shape


def test_a_delta_of_longer_words_is_damaged() -> None:
    old, encoded = encoded_example()
    with pytest.raises(Damaged, match=r"changes word|at most|holds"):
        apply_chunk(memoryview(encoded), old[:1000].copy())
