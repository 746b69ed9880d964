"""How rows are cut into micro-batches. Owns no tensors: layout happens in the policy model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

import numpy as np

from manta.actors.rows import Row

OVERHEAD_TOKENS = 256
"""What starting one more padded batch costs, counted in tokens (measured: 64 to 512 do as well)."""


def micro_batches(rows: Sequence[Row], tokens_per_micro_batch: int) -> list[list[Row]]:
    """Every row once: those with one beginning (the samples of a prompt) next to each other, the
    longest first in each family, the families in the order of their longest rows.

    A batch has at most `tokens_per_micro_batch` tokens, no padding counted, and every beginning as
    often as rows have it; a longer row is a batch of its own. The result depends on the set of
    rows, not on their order.
    """
    families: dict[bytes, list[Row]] = {}
    for row in _longest_first(rows):
        families.setdefault(row.beginning, []).append(row)
    batches: list[list[Row]] = []
    room = 0
    for row in chain.from_iterable(families.values()):
        length = len(row.token_ids)
        if length > room or not batches:
            batches.append([])
            room = tokens_per_micro_batch
        batches[-1].append(row)
        room -= length
    return batches


def unit_batches(
    rows: Sequence[Row], unit_of: Mapping[int, int], tokens_per_micro_batch: int
) -> list[list[Row]]:
    """As `micro_batches`, with the rows of a unit (by row index) in one batch as far as they fit.

    A unit of more than `tokens_per_micro_batch` tokens is cut as if its rows were all there is.
    """
    units: dict[int, list[Row]] = {}
    for row in _longest_first(rows):
        units.setdefault(unit_of[row.index], []).append(row)
    batches: list[list[Row]] = []
    room = 0
    for members in units.values():
        length = sum(len(row.token_ids) for row in members)
        if length > tokens_per_micro_batch:
            batches += micro_batches(members, tokens_per_micro_batch)
            room = 0
            continue
        if length > room:
            batches.append([])
            room = tokens_per_micro_batch
        batches[-1] += members
        room -= length
    return batches


def padded_batches(rows: Sequence[Row]) -> list[list[Row]]:
    """Every row once, in batches to be padded to their longest row: among the cuts of the
    length-sorted rows the one with the least padding plus `OVERHEAD_TOKENS` per batch."""
    ordered = _longest_first(rows)
    lengths = np.array([len(row.token_ids) for row in ordered], np.int64)
    return [ordered[start:end] for start, end in pairwise(_cut(lengths))]


def _longest_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-len(row.token_ids), row.index))


def _cut(lengths: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    """Borders, 0 included, of the cheapest cut of falling lengths (dynamic programming)."""
    num_rows = len(lengths)
    cost = np.zeros(num_rows + 1, np.int64)
    end_of = np.zeros(num_rows, np.int64)
    for start in range(num_rows - 1, -1, -1):
        sizes = np.arange(1, num_rows - start + 1)
        totals = sizes * lengths[start] + OVERHEAD_TOKENS + cost[start + 1 :]
        best = len(totals) - 1 - int(np.argmin(totals[::-1]))
        cost[start] = totals[best]
        end_of[start] = start + best + 1
    borders = [0]
    while borders[-1] < num_rows:
        borders.append(int(end_of[borders[-1]]))
    return borders
