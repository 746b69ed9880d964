"""The lengths that TRL's generation is held to."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl", reason="TRL is a peer, installed for benchmarks only")

from benchmarks.trl_side import PinnedEnds, pinned_reward

END = 5


def test_the_end_token_is_banned_before_the_pinned_length_and_forced_at_it() -> None:
    ends = PinnedEnds([1, 3], prompt_tokens=2, end=END)
    for made in range(3):
        probabilities = ends(torch.zeros(2, 2 + made), torch.zeros(2, 8)).softmax(-1)
        for row, length in enumerate([1, 3]):
            expected = 1.0 if made + 1 == length else 0.0
            assert probabilities[row, END] == expected


def test_a_length_that_is_not_as_planned_ends_the_run() -> None:
    reward = pinned_reward([[1, 2], [1, 2]])
    assert reward(completion_ids=[[2], [2, 3]]) == [1.0, 0.5]
    with pytest.raises(RuntimeError, match="asked for"):
        reward(completion_ids=[[2, 2], [2, 3]])
