"""Random weights of mixed types, and steps from one version to the next."""

from __future__ import annotations

import numpy as np
import torch

from manta.actors.weight_tensors import pack, unpack
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion

SHAPES = {"a.weight": (300, 40), "b.bias": (7,), "c.scalar": (), "d.none": (0, 3)}
MIXED = {
    "a.weight": torch.bfloat16,
    "b.bias": torch.float32,
    "c.scalar": torch.int64,
    "d.none": torch.bfloat16,
    "e.flag": torch.bool,
}


def first(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Weights:
    """Version 0.0: matrices in `dtype`, and tensors of other types between them."""
    generator = torch.Generator().manual_seed(seed)
    types = MIXED | {"a.weight": dtype, "f.head": dtype}
    shapes = SHAPES | {"e.flag": (13,), "f.head": (40, 130)}
    state = {
        name: (0.1 * torch.randn(shapes[name], generator=generator)).to(kind)
        for name, kind in types.items()
    }
    return pack(state, WeightVersion(0, 0))


def after(weights: Weights, step: int, rate: float, incarnation: int = 0) -> Weights:
    """Every number of floating type moved by up to about `rate`."""
    generator = torch.Generator().manual_seed(step)
    state = unpack(weights)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            noise = rate * torch.randn(tensor.shape, generator=generator)
            state[name] = (tensor.float() + noise).to(tensor.dtype)
    return pack(state, WeightVersion(step, incarnation))


def equal(one: Weights, other: Weights) -> bool:
    return (
        (one.version, one.specs, one.sha256) == (other.version, other.specs, other.sha256)
        and np.array_equal(one.data, other.data)
    )  # fmt: skip
