"""Between named tensors and weights as canonical bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from manta.actors.weight_stream import StreamHash
from manta.actors.weights import ALIGNMENT, TensorSpec, Weights, content_hash
from manta.envs.records import WeightVersion


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


def stream_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """The hash of the tensors (any device), which come in name order, as one `Weights`; none is
    kept."""
    stream = StreamHash()
    hash_into(stream, named)
    return stream.close()


def hash_into(stream: StreamHash, named: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in named:
        octets = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        stream.add(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), octets)


def refuse_mismatch(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    told: str = "these are another model's weights",
) -> None:
    """Raises ValueError, `told` and what is wrong, where a tensor of `given` differs in name or
    shape; of several the first, in `expected`'s order."""
    problem = _first_mismatch(expected, given)
    if problem is not None:
        raise ValueError(f"{told}: {problem}")


def _first_mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    for name, tensor in expected.items():
        if name not in given:
            return f"{name} is missing"
        if given[name].shape != tensor.shape:
            return f"{name} has shape {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
    extra = next((name for name in given if name not in expected), None)
    return None if extra is None else f"{extra} is unknown"
