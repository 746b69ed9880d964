"""Sums over the ranks of a learner group. Who talks to whom is the caller's: it brings a function.

Sums of floats depend on their order, and so on how rows are shared out, in the last bits. Where a
decision hangs on a sum, `exact_sums` gives the same bits however rows are dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

AllReduce: TypeAlias = Callable[[Tensor], Tensor]
"""The sum of a small float64 tensor over all ranks; every rank calls it equally often."""

_FRACTION, _GREATEST = 24, 2.0**15
"""Bits behind the point, and the largest size of what is summed."""

_LIMB = 31
"""Bits of the lower half of a sum: float64 holds both halves' sums over ranks exactly."""


def exact_sums(columns: Sequence[Tensor], all_reduce: AllReduce) -> list[float]:
    """The sum over all ranks of each of `columns`, [T] each, of any number of tokens.

    Values are summed as whole numbers of 2^-24, those beyond 2^15 in size as if they were that, and
    NaN as 0. One call of `all_reduce`. A rank holds 2^24 values of the largest size, or more of
    smaller ones.
    """
    wholes = [int(_whole(column).sum()) for column in columns]
    halves = [[whole >> _LIMB, whole & (2**_LIMB - 1)] for whole in wholes]
    total = all_reduce(torch.tensor(halves, dtype=torch.float64))
    return [((int(high) << _LIMB) + int(low)) / 2**_FRACTION for high, low in total.tolist()]


def _whole(values_T: Tensor) -> Tensor:
    bounded_T = values_T.double().nan_to_num(0.0).clamp(-_GREATEST, _GREATEST)
    return torch.round(bounded_T * 2**_FRACTION).long()
