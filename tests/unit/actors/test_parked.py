"""Memory given back under tensors that others have views of."""

from __future__ import annotations

import pytest
import torch

from manta.actors.backends.parked import Parked


@pytest.mark.parametrize("keeps", [True, False])
def test_views_see_the_buffer_again(keeps: bool) -> None:
    buffer = torch.arange(8.0)
    view = buffer[2:6].view(2, 2)
    parked = Parked(buffer, keeps)
    assert parked.held_bytes == 32
    parked.give_back()
    parked.give_back()
    assert parked.held_bytes == buffer.untyped_storage().nbytes() == 0
    parked.take_back()
    parked.take_back()
    assert parked.held_bytes == 32
    if keeps:
        assert view.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    view.fill_(7.0)
    assert buffer[2:6].tolist() == [7.0] * 4


def test_what_is_written_to_the_content_meanwhile_is_there_afterwards() -> None:
    buffer = torch.zeros(4)
    parked = Parked(buffer, keeps_content=True)
    parked.content[0] = 1.0
    parked.give_back()
    assert parked.content.tolist() == [1.0, 0.0, 0.0, 0.0]
    parked.content[1] = 2.0
    parked.take_back()
    assert buffer.tolist() == [1.0, 2.0, 0.0, 0.0]
