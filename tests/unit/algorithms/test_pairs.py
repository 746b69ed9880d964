"""Which samples of a group are compared, and which groups have none to compare."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from manta.algorithms.group_stage import NO_PAIR, group_stage
from manta.algorithms.pairs import PAIRS, pairs_of
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import PairsName

REWARDS = torch.tensor([0.5, 1.0, 0.0, 1.0, 2.0, 2.0, 7.0])
GROUPS = torch.tensor([3, 3, 3, 3, 5, 5, 8], dtype=torch.int32)
ALL = torch.ones(7, dtype=torch.bool)


def listed(how: str, eligible: Tensor = ALL) -> list[tuple[int, int]]:
    pairs = pairs_of(how, REWARDS, GROUPS, eligible)  # type: ignore[arg-type]
    return list(zip(pairs.chosen_P.tolist(), pairs.rejected_P.tolist(), strict=True))


def test_the_best_with_the_worst_the_first_of_several() -> None:
    assert listed("best_worst") == [(1, 2)]


def test_every_two_of_different_reward() -> None:
    assert listed("all") == [(0, 2), (1, 0), (1, 2), (3, 0), (3, 2)]


def test_every_sample_with_the_row_beside_it() -> None:
    """Row 2 is that of the first group, better than none; 4 and 5 draw; 6 has no samples."""
    is_beside = torch.tensor([0, 0, 1, 0, 1, 0, 1], dtype=torch.bool)

    def listed_at(eligible: Tensor = ALL, margin: float = 0.0) -> list[tuple[int, int]]:
        pairs = pairs_of("companion", REWARDS, GROUPS, eligible, margin, is_beside)
        return list(zip(pairs.chosen_P.tolist(), pairs.rejected_P.tolist(), strict=True))

    assert listed_at() == [(0, 2), (1, 2), (3, 2)]
    assert listed_at(margin=0.7) == [(1, 2), (3, 2)]
    assert listed_at(torch.tensor([0, 1, 1, 1, 1, 1, 1], dtype=torch.bool)) == [(1, 2), (3, 2)]
    assert listed_at(~is_beside) == []
    assert listed("companion") == [], "there is none"
    is_beside = torch.tensor([0, 1, 0, 0, 0, 1, 0], dtype=torch.bool)
    assert listed_at() == [(1, 0), (1, 2)], "one that is better, but for a draw"
    stage = group_stage(PRESETS["xpo"], REWARDS, GROUPS, is_companion_N=is_beside)
    assert torch.where(stage.coefficients["keep"] == 1)[0].tolist() == [0, 1, 2]
    assert stage.filtered == {5: NO_PAIR, 8: NO_PAIR}


def test_pairs_whose_rewards_differ_by_a_margin() -> None:
    every = torch.ones(4, dtype=torch.bool)
    rewards = torch.tensor([0.0, 0.1, 0.6, 1.0])
    groups = torch.zeros(4, dtype=torch.int64)

    def listed_at(how: str, margin: float) -> list[tuple[int, int]]:
        pairs = pairs_of(how, rewards, groups, every, margin)  # type: ignore[arg-type]
        return list(zip(pairs.chosen_P.tolist(), pairs.rejected_P.tolist(), strict=True))

    assert listed_at("all", 0.55) == [(2, 0), (3, 0), (3, 1)]
    assert listed_at("best_worst", 1.0) == [(3, 0)]
    assert listed_at("best_worst", 1.01) == listed_at("all", 1.01) == []
    for high, low in ((0.9, 0.8), (0.4, 0.3), (0.7, 0.6), (100.1, 100.0)):
        rewards = torch.tensor([low, high, low, low])
        assert listed_at("best_worst", 0.1) == [(1, 0)], "as written, though float32 is finer"
        assert listed_at("best_worst", 0.1001) == []
    rewards = torch.tensor([0.0, 0.1, 0.6, 1.0])
    by_hand = [(i, j) for i in range(4) for j in range(4) if rewards[i] > rewards[j]]
    assert listed_at("all", 0.0) == by_hand


def test_every_name_of_pairs_has_a_builder() -> None:
    assert set(PAIRS) == set(get_args(PairsName))


def test_rows_that_cannot_train_are_not_compared() -> None:
    eligible = torch.tensor([1, 0, 1, 1, 1, 1, 1], dtype=torch.bool)
    assert listed("best_worst", eligible) == [(3, 2)]
    assert listed("all", eligible) == [(0, 2), (3, 0), (3, 2)]
    assert listed("all", torch.zeros(7, dtype=torch.bool)) == []


@pytest.mark.parametrize(("name", "kept"), [("dpo", [1, 2]), ("reward_model", [0, 1, 2, 3])])
def test_rows_in_no_pair_are_not_kept_and_groups_without_one_are_filtered(
    name: str, kept: list[int]
) -> None:
    stage = group_stage(PRESETS[name], REWARDS, GROUPS)
    assert torch.where(stage.coefficients["keep"] == 1)[0].tolist() == kept
    assert stage.filtered == {5: NO_PAIR, 8: NO_PAIR}
    assert {column.dtype for column in stage.coefficients.values()} == {torch.float32}


def test_rewards_must_be_finite_to_compare() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group_stage(PRESETS["dpo"], torch.tensor([1.0, float("nan")]), torch.tensor([0, 0]))
    other = replace(PRESETS["grpo"], samples_per_prompt=2)
    assert group_stage(other, REWARDS, GROUPS).pairs is None
