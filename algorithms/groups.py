"""Sums by group over the rows of a step, in float64.

Shapes: N rows, G groups. `group_N` int64[N] names each row's group by any number.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Groups:
    """Sums by group. `size_G` float64, `index_N` each row's place among the groups."""

    def __init__(self, group_N: Tensor) -> None:
        names, self.index_N = torch.unique(group_N, return_inverse=True)
        self._zeros_G = torch.zeros(len(names), dtype=torch.float64, device=group_N.device)
        self.size_G = self.total(torch.ones_like(group_N, dtype=torch.float64))
        self.is_alone_N = (self.size_G == 1)[self.index_N]

    def total(self, values_N: Tensor) -> Tensor:
        return self._zeros_G.index_add(0, self.index_N, values_N)

    def above_lowest(self, values_N: Tensor) -> Tensor:
        """Measured from the group's lowest value, equal ones give 0 without a rounding error, which
        a small divisor would blow up."""
        values_N = values_N.double()
        lowest_G = self._zeros_G.scatter_reduce(
            0, self.index_N, values_N, "amin", include_self=False
        )
        return values_N - lowest_G[self.index_N]

    def centred(self, values_N: Tensor) -> Tensor:
        above_N = self.above_lowest(values_N)
        return above_N - (self.total(above_N) / self.size_G)[self.index_N]
