from __future__ import annotations

import torch

from manta.actors.engines.kv_slots import KeyValueSlots


def numbered(rows: int, length: int, first: float) -> torch.Tensor:
    """[rows, 2, length, 3] of distinct numbers."""
    count = rows * 2 * length * 3
    return torch.arange(first, first + count).reshape(rows, 2, length, 3)


def filled() -> KeyValueSlots:
    """Three slots of one layer, of which the first two share a prefix of four tokens."""
    slots = KeyValueSlots(max_slots=6, context=100)
    keys = numbered(2, 4, 0.0)
    slots.store(0, [keys], [-keys], torch.tensor([1, 1, 0]))
    return slots


def test_stored_prefixes_stand_in_their_slots() -> None:
    slots, keys = filled(), numbered(2, 4, 0.0)
    assert torch.equal(slots.keys[0][:3, :, :4], keys[[1, 1, 0]])
    assert torch.equal(slots.values[0][:3, :, :4], -keys[[1, 1, 0]])


def test_update_writes_each_row_at_its_own_place() -> None:
    slots = filled()
    before = slots.keys[0].clone()
    new = numbered(3, 1, 500.0)
    slots.aim(torch.tensor([4, 2, 5]), 6)
    keys, values = slots.update(new, -new, 0)
    assert keys.shape == values.shape == (3, 2, 6, 3)
    for row, place in enumerate([4, 2, 5]):
        assert torch.equal(keys[row, :, place], new[row, :, 0])
        assert torch.equal(values[row, :, place], -new[row, :, 0])
        before[row, :, place] = new[row, :, 0]
    assert torch.equal(slots.keys[0], before)
    assert keys.data_ptr() == slots.keys[0].data_ptr()


def test_growth_keeps_what_is_stored_and_stays_within_its_bounds() -> None:
    slots = filled()
    kept = slots.keys[0][:3, :, :4].clone()
    slots.reserve(5, 65)
    assert slots.keys[0].shape == (6, 2, 100, 3)
    assert torch.equal(slots.keys[0][:3, :, :4], kept)
    memory = slots.keys[0]
    slots.reserve(6, 100)
    assert slots.keys[0] is memory


def test_a_move_copies_whole_rows() -> None:
    slots = filled()
    last = slots.keys[0][2, :, :4].clone()
    slots.move([2], [0], 4)
    assert torch.equal(slots.keys[0][0, :, :4], last)
    assert torch.equal(slots.values[0][0, :, :4], -last)
