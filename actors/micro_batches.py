"""How rows are cut into micro-batches. Owns no tensors: padding happens in the policy model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from manta.actors.rows import Row

OVERHEAD_TOKENS = 256
"""What starting one more micro-batch costs, counted in tokens (measured: 64 to 512 do as well)."""


def micro_batches(rows: Sequence[Row], tokens_per_micro_batch: int) -> list[list[Row]]:
    """Every row once, in batches of similar length, the longest first.

    Rows x longest row of a batch is at most `tokens_per_micro_batch`; a longer row is a batch of
    its own. Among the cuts of the length-sorted rows it takes the one with the least padding plus
    `OVERHEAD_TOKENS` per batch. The result depends on the set of rows, not on their order.
    """
    ordered = sorted(rows, key=lambda row: (-len(row.token_ids), row.index))
    lengths = np.array([len(row.token_ids) for row in ordered], np.int64)
    borders = _cut(lengths, tokens_per_micro_batch)
    return [ordered[start:end] for start, end in pairwise(borders)]


def _cut(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], budget: int) -> list[int]:
    """Borders, 0 included, of the cheapest cut of falling lengths (dynamic programming)."""
    num_rows = len(lengths)
    cost = np.zeros(num_rows + 1, np.int64)
    end_of = np.zeros(num_rows, np.int64)
    for start in range(num_rows - 1, -1, -1):
        most = min(max(1, budget // max(1, int(lengths[start]))), num_rows - start)
        sizes = np.arange(1, most + 1)
        totals = sizes * lengths[start] + OVERHEAD_TOKENS + cost[start + 1 : start + most + 1]
        best = len(totals) - 1 - int(np.argmin(totals[::-1]))
        cost[start] = totals[best]
        end_of[start] = start + best + 1
    borders = [0]
    while borders[-1] < num_rows:
        borders.append(int(end_of[borders[-1]]))
    return borders
