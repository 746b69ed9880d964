"""Weights as canonical bytes: one contiguous buffer, an index of named tensors, and a hash.

The hash is taken over names, shapes, dtypes and bytes in name order, so equal weights have equal
hashes wherever they are computed. Every tensor starts at a multiple of `ALIGNMENT` bytes (zeros
fill the gaps), so that it can be viewed in its own type whatever stands before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


def pack(state: Mapping[str, Tensor], version: WeightVersion) -> Weights:
    """Copies the named tensors of `state` (any device) into canonical bytes."""
    specs: list[TensorSpec] = []
    end = 0
    for name in sorted(state):
        tensor = state[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        start = -(-end // ALIGNMENT) * ALIGNMENT
        end = start + tensor.numel() * tensor.element_size()
        specs.append(TensorSpec(name, dtype, tuple(tensor.shape), start, end))
    data = np.zeros(end, np.uint8)
    for spec in specs:
        tensor = state[spec.name].detach().to("cpu").contiguous()
        data[spec.start : spec.end] = tensor.reshape(-1).view(torch.uint8).numpy()
    return Weights(version, tuple(specs), data, content_hash(tuple(specs), data))


def unpack(weights: Weights) -> dict[str, Tensor]:
    """The named tensors as fresh copies (`data` may be a read-only view of shared memory)."""
    buffer = torch.from_numpy(weights.data.copy())
    return {
        spec.name: buffer[spec.start : spec.end]
        .view(getattr(torch, spec.dtype))
        .reshape(spec.shape)
        for spec in weights.specs
    }


def first_mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the first tensor (in `expected`'s order) that differs in name or shape."""
    for name, tensor in expected.items():
        if name not in given:
            return f"{name} is missing"
        if given[name].shape != tensor.shape:
            return f"{name} has shape {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
    extra = next((name for name in given if name not in expected), None)
    return None if extra is None else f"{extra} is unknown"
