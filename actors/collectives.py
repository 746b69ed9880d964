"""Small tensors and texts over learner ranks, as plain functions. Gradients are the backend's."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from manta.algorithms.rank_sums import AllReduce


def alone(values: Tensor) -> Tensor:
    """The sum over a single rank."""
    return values


def sum_over(group: dist.ProcessGroup) -> AllReduce:
    """A function that returns the sum of a tensor over the ranks of `group`."""

    def summed(values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, dist.ReduceOp.SUM, group=group)
        return total

    return summed


def gather_texts(text: str, group: dist.ProcessGroup) -> list[str]:
    """Every rank's `text`, in rank order; `all_gather_object` would unpickle what peers send."""
    own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(own)]), group=group)
    longest = max(int(size) for size in sizes)
    gathered = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(gathered, torch.cat([own, own.new_zeros(longest - len(own))]), group=group)
    return [
        data[: int(size)].numpy().tobytes().decode()
        for data, size in zip(gathered, sizes, strict=True)
    ]
