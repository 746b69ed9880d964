"""Micro-batches that keep the rows of a unit together."""

from __future__ import annotations

import pytest

from manta.actors.micro_batches import unit_batches
from tiny import tiny_rows

ROWS = tiny_rows((2, 2, 2, 3, 3))
UNIT_OF = {row.index: unit for row, unit in zip(ROWS, (0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4))}  # noqa: B905


@pytest.mark.parametrize("budget", [1, 30, 45, 60, 100, 8192])
def test_every_row_once_and_units_whole_where_they_fit(budget: int) -> None:
    batches = unit_batches(ROWS, UNIT_OF, budget)
    indices = [row.index for batch in batches for row in batch]
    assert sorted(indices) == sorted(row.index for row in ROWS)
    lengths = dict.fromkeys(UNIT_OF.values(), 0)
    for row in ROWS:
        lengths[UNIT_OF[row.index]] += len(row.token_ids)
    for unit, length in lengths.items():
        places = {i for i, batch in enumerate(batches) for r in batch if UNIT_OF[r.index] == unit}
        assert (len(places) == 1) == (length <= budget), (unit, length)
    for batch in batches:
        assert sum(len(row.token_ids) for row in batch) <= budget or len(batch) == 1


def test_the_order_of_rows_does_not_matter() -> None:
    there, back = (unit_batches(rows, UNIT_OF, 60) for rows in (ROWS, ROWS[::-1]))
    assert [[r.index for r in batch] for batch in there] == [
        [r.index for r in batch] for batch in back
    ]
