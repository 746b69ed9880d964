"""Ranks that are threads, for what sums over them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
AllReduce = Callable[[Tensor], Tensor]


class Ranks:
    """An all-reduce among threads, as real ranks would do it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=10)
        self.parts: list[Tensor] = [torch.zeros(0)] * size

    def all_reduce(self, rank: int) -> AllReduce:
        def total(part: Tensor) -> Tensor:
            self.parts[rank] = part
            self.barrier.wait()
            summed = torch.stack(self.parts).sum(0)
            self.barrier.wait()
            return summed

        return total

    def run(self, work: Callable[[int, AllReduce], T]) -> list[T]:
        """What `work(rank, all_reduce)` gives on each rank, all at once."""
        with ThreadPoolExecutor(self.size) as pool:
            calls = [pool.submit(work, rank, self.all_reduce(rank)) for rank in range(self.size)]
            return [call.result() for call in calls]
