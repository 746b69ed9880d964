"""Sums of small tensors over learner ranks, as plain functions. Gradients are the backend's."""

from __future__ import annotations

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
