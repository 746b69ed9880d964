"""The hash in a stream is the hash of the whole."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.actors.weight_stream import StreamHash
from manta.actors.weight_tensors import pack, unpack
from manta.actors.weights import HASHED_CHUNK
from manta.envs.records import WeightVersion

VERSION = WeightVersion(1, 0)


def streamed(state: Mapping[str, Tensor]) -> str:
    weights = pack(state, VERSION)
    stream = StreamHash()
    for spec in weights.specs:
        stream.add(spec.name, spec.dtype, spec.shape, weights.data[spec.start : spec.end])
    return stream.close()


@given(
    sizes=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_it_is_that_of_the_whole(sizes: list[int], dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = {
        f"t{i}": (torch.rand(size, generator=generator) * 100).to(dtype)
        for i, size in enumerate(sizes)
    }
    assert streamed(state) == pack(state, VERSION).sha256


@pytest.mark.parametrize(("chunks", "beyond"), [(1, -1), (1, 0), (18, 1)])
def test_it_is_that_of_the_whole_over_many_chunks(chunks: int, beyond: int) -> None:
    """Ends on both sides of a chunk's, and more chunks than wait for a thread at once."""
    octets = torch.arange(chunks * HASHED_CHUNK + beyond).to(torch.uint8)
    state = {"a": octets[:100], "b": octets, "c": octets[:HASHED_CHUNK]}
    assert streamed(state) == pack(state, VERSION).sha256


def test_other_names_shapes_or_bytes_give_another_hash() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2)}
    others = [
        {"a": torch.arange(6.0), "c": torch.ones(2)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)},
        {"a": torch.arange(6.0), "b": torch.zeros(2)},
        {"a": torch.arange(6.0)},
    ]
    hashes = {streamed(each) for each in [state, *others]}
    assert len(hashes) == 5
    assert streamed(unpack(pack(state, VERSION))) == streamed(state)


def test_names_must_rise() -> None:
    stream = StreamHash()
    one = pack({"b": torch.ones(1)}, VERSION)
    stream.add("b", "float32", (1,), one.data)
    with pytest.raises(ValueError, match="tensor a came after b"):
        stream.add("a", "float32", (1,), one.data)
    stream.close()
