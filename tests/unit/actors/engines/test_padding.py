from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from manta.actors.engines.padding import pad, padded_batches


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(0, 2000))
def test_every_row_is_in_one_batch_within_the_bound(lengths: list[int], max_cells: int) -> None:
    batches = padded_batches(lengths, max_cells)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= max_cells
        assert longest <= 1.5 * min(lengths[index] for index in batch) + 16


def test_no_room_means_every_row_alone() -> None:
    assert padded_batches([5, 3, 3], 0) == [[1], [2], [0]]


def test_padding_stands_on_the_right() -> None:
    padded = pad([torch.tensor([1, 2, 3]), torch.tensor([4])])
    assert padded.tolist() == [[1, 2, 3], [4, 0, 0]]
