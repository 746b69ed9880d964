"""The group stage: coefficients and filters from rewards."""

import dataclasses

import pytest
import torch

from manta.algorithms.group_stage import ZERO_VARIANCE, group_stage, zero_variance
from manta.algorithms.presets import PRESETS

REWARDS_N = torch.tensor([1.0, 0.5, 3.0, 0.5, 2.0, 0.5, 7.0])
GROUP_N = torch.tensor([4, 9, 4, 9, 4, 9, 2])


def test_mean_only_advantages_by_hand() -> None:
    stage = group_stage(PRESETS["dr_grpo"], REWARDS_N, GROUP_N)
    assert stage.coefficients["advantage"].tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert stage.coefficients["weight"].tolist() == [1.0] * 7
    assert stage.coefficients["keep"].tolist() == [1.0] * 7
    assert stage.filtered == {}
    assert {column.dtype for column in stage.coefficients.values()} == {torch.float32}


def test_grpo_divides_by_the_unbiased_std() -> None:
    stage = group_stage(PRESETS["grpo"], REWARDS_N, GROUP_N)
    # Group 4: rewards 1, 3, 2 have standard deviation 1.
    torch.testing.assert_close(
        stage.coefficients["advantage"],
        torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]) / (1 + 1e-6),
    )


def test_groups_of_equal_rewards_are_filtered_on_request() -> None:
    stage = group_stage(PRESETS["dapo"], REWARDS_N, GROUP_N)
    assert stage.filtered == {2: ZERO_VARIANCE, 9: ZERO_VARIANCE}
    assert stage.coefficients["keep"].tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert zero_variance(REWARDS_N, GROUP_N) == [2, 9]


def test_group_by_group_equals_the_whole_step() -> None:
    whole = group_stage(PRESETS["dapo"], REWARDS_N, GROUP_N)
    for group in (2, 4, 9):
        rows = torch.eq(GROUP_N, group)
        alone = group_stage(PRESETS["dapo"], REWARDS_N[rows], GROUP_N[rows])
        for name, column in alone.coefficients.items():
            assert torch.equal(column, whole.coefficients[name][rows])
        assert alone.filtered.items() <= whole.filtered.items()


def test_reinforce_takes_the_rewards_themselves() -> None:
    stage = group_stage(PRESETS["reinforce"], REWARDS_N, GROUP_N)
    assert torch.equal(stage.coefficients["advantage"], REWARDS_N)


def test_cross_entropy_does_not_read_rewards() -> None:
    stage = group_stage(PRESETS["sft"], torch.full((7,), float("nan")), GROUP_N)
    for name in ("advantage", "weight", "keep"):
        assert stage.coefficients[name].tolist() == [1.0] * 7


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("preset", ["grpo", "reinforce"])
def test_a_reward_that_is_not_finite_is_refused_by_group(preset: str, bad: float) -> None:
    rewards_N = REWARDS_N.clone()
    rewards_N[1] = bad
    with pytest.raises(ValueError, match=r"rewards of groups \[9\] are not finite \(1 of 7 rows\)"):
        group_stage(PRESETS[preset], rewards_N, GROUP_N)


def test_precision_survives_a_large_common_offset() -> None:
    rewards_N = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    group_N = torch.zeros(3, dtype=torch.int64)
    settings = dataclasses.replace(PRESETS["grpo"], std_epsilon=1e-9)
    near = group_stage(settings, rewards_N, group_N).coefficients["advantage"]
    far = group_stage(settings, rewards_N + 2.0**40, group_N).coefficients["advantage"]
    torch.testing.assert_close(near, far, rtol=1e-6, atol=0)
