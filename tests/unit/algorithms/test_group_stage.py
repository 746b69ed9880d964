"""The group stage: coefficients and filters from rewards."""

import dataclasses

import pytest
import torch

from manta.algorithms.group_stage import group_stage
from manta.algorithms.part_settings import FilterSettings
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
    assert stage.filtered == {2: "zero_variance", 9: "zero_variance"}
    assert stage.coefficients["keep"].tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]


def test_group_by_group_equals_the_whole_step() -> None:
    whole = group_stage(PRESETS["dapo"], REWARDS_N, GROUP_N)
    for group in (2, 4, 9):
        rows = torch.eq(GROUP_N, group)
        alone = group_stage(PRESETS["dapo"], REWARDS_N[rows], GROUP_N[rows])
        for name, column in alone.coefficients.items():
            assert torch.equal(column, whole.coefficients[name][rows])
        assert alone.filtered.items() <= whole.filtered.items()


def test_what_a_filter_leaves_out_has_no_part_in_the_advantages_of_the_rest() -> None:
    """Rewards 0 and 9 of four, as PODS's own code: mean and deviation are those of the chosen."""
    chosen = FilterSettings("max_variance", keep=2)
    settings = dataclasses.replace(PRESETS["grpo"], filters=(chosen,))
    rewards_N = torch.tensor([3.0, 9.0, 7.0, 0.0, 4.0])
    stage = group_stage(settings, rewards_N, torch.tensor([1, 1, 1, 1, 0]))
    half = 4.5 / (4.5 * 2**0.5 + 1e-6)
    expected = torch.tensor([0.0, half, 0.0, -half, 0.0])
    torch.testing.assert_close(stage.coefficients["advantage"], expected)
    assert stage.coefficients["keep"].tolist() == [0, 1, 0, 1, 1]
    assert stage.filtered == {}


def test_a_step_of_which_nothing_is_left_has_no_advantages() -> None:
    stage = group_stage(PRESETS["dapo"], torch.ones(4), torch.tensor([0, 0, 1, 1]))
    assert stage.filtered == {0: "zero_variance", 1: "zero_variance"}
    for name in ("advantage", "keep"):
        assert stage.coefficients[name].tolist() == [0.0] * 4


def test_components_are_cut_for_filters_and_advantages_alike() -> None:
    band = FilterSettings("accuracy_band", component="right")
    settings = dataclasses.replace(
        PRESETS["gdpo"], component_weights={"right": 1.0, "short": 1.0}, filters=(band,)
    )
    rewards_N = torch.tensor([1.0, 0.0, 1.0, 1.0])
    parts = {"right": rewards_N, "short": torch.tensor([0.0, 1.0, 5.0, 6.0])}
    stage = group_stage(settings, rewards_N, torch.tensor([0, 0, 1, 1]), None, None, parts)
    assert stage.filtered == {1: "accuracy_band"}
    alone = {name: values[:2] for name, values in parts.items()}
    half = group_stage(settings, rewards_N[:2], torch.tensor([0, 0]), None, None, alone)
    found = stage.coefficients["advantage"]
    assert torch.equal(found[:2], half.coefficients["advantage"])
    assert found[2:].tolist() == [0.0, 0.0]


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
