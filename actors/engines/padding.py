"""Rows of unequal length as padded batches: which rows share one, and the padded tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SLACK = 16
"""Tokens of padding that cost less than running another batch."""


def padded_batches(lengths: Sequence[int], max_cells: int) -> list[list[int]]:
    """Row indices by batch, shortest rows first.

    Rows share a batch while it stays within `max_cells` (rows x longest row; one row alone may be
    larger) and its longest row within half as much again as its shortest.
    """
    batches: list[list[int]] = []
    shortest = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        fits = bool(batches) and (len(batches[-1]) + 1) * length <= max_cells
        if not fits or length > shortest + shortest // 2 + _SLACK:
            batches.append([])
            shortest = length
        batches[-1].append(index)
    return batches


def pad(rows: Sequence[Tensor]) -> Tensor:
    """int64[R, L] of the 1-D `rows`, zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(torch.int64)
