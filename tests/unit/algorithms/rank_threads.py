"""Ranks as threads of the test, and an all-reduce among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from manta.algorithms.rank_sums import AllReduce

Part = TypeVar("Part")
Result = TypeVar("Result")


class _Sums:
    def __init__(self, size: int) -> None:
        self._barrier = Barrier(size, timeout=10)
        self._parts = [torch.zeros(0)] * size

    def of(self, rank: int) -> AllReduce:
        def total(values: Tensor) -> Tensor:
            assert values.dtype == torch.float64
            self._parts[rank] = values
            self._barrier.wait()
            found = torch.stack(self._parts).sum(0)
            self._barrier.wait()
            return found

        return total


def on_ranks(parts: Sequence[Part], work: Callable[[Part, AllReduce], Result]) -> list[Result]:
    """What each rank makes of its part, in their order. All of them sum equally often."""
    sums = _Sums(len(parts))
    with ThreadPoolExecutor(len(parts)) as pool:
        doing = [pool.submit(work, part, sums.of(rank)) for rank, part in enumerate(parts)]
        return [done.result() for done in doing]
