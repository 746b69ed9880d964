from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from manta.algorithms.part_settings import FilterSettings
from manta.algorithms.presets import PRESETS
from manta.envs.records import COMPANION, CompanionKind, CompanionSummary, GroupId, GroupSummary
from manta.orchestrator.assemble import assemble, filter_reason, selection
from tests.unit.orchestrator.groups import summary

GRPO = replace(PRESETS["grpo"], samples_per_prompt=2)
DAPO = PRESETS["dapo"]
DPO = PRESETS["dpo"]
REWARD_MODEL = PRESETS["reward_model"]


def test_groups_of_different_sizes_become_rows_in_order() -> None:
    groups = [summary(GroupId(0, 4, 0), (0.0, 2.0)), summary(GroupId(0, 1, 2), (1.0, 1.0, 4.0))]
    plan = assemble(7, groups, GRPO)
    assert plan.step == 7
    assert plan.groups == (GroupId(0, 4, 0), GroupId(0, 1, 2))
    assert plan.group_N.tolist() == [0, 0, 1, 1, 1]
    assert plan.sample_N.tolist() == [0, 1, 0, 1, 2]
    assert plan.unit_N.tolist() == [0, 1, 2, 3, 4]
    assert plan.lengths_N.tolist() == [3, 4, 3, 4, 5]
    assert plan.num_tokens_N.tolist() == [2] * 5
    # mean 1, std sqrt(2); mean 2, std sqrt(3)
    expected = [-1 / 2**0.5, 1 / 2**0.5, -1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5]
    np.testing.assert_allclose(plan.coefficients["advantage"], expected, rtol=1e-5)
    assert plan.coefficients["keep"].tolist() == [1.0] * 5
    assert {column.dtype.name for column in plan.coefficients.values()} == {"float32"}


def test_equal_rewards_are_filtered_where_the_algorithm_says_so() -> None:
    flat, varied = summary(GroupId(0, 0, 0), (0.5, 0.5)), summary(GroupId(0, 1, 0), (0.5, 0.6))
    assert filter_reason(DAPO, flat) == "zero_variance: all rewards of the group are equal"
    assert filter_reason(DAPO, varied) is None
    assert filter_reason(GRPO, flat) is None


def test_a_flat_group_that_is_in_a_plan_all_the_same_does_not_train() -> None:
    groups = [summary(GroupId(0, 0, 0), (0.5, 0.5)), summary(GroupId(0, 1, 0), (0.0, 1.0))]
    assert assemble(1, groups, DAPO).coefficients["keep"].tolist() == [0, 0, 1, 1]
    assert assemble(1, groups, GRPO).coefficients["keep"].tolist() == [1, 1, 1, 1]


def test_a_band_of_accuracy_drops_groups_by_a_component() -> None:
    band = replace(GRPO, filters=(FilterSettings("accuracy_band", low=0.3),))
    parts = ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0])
    groups = [
        summary(GroupId(0, i, 0), (0.0, 1.0, 2.0), {"correct": part})
        for i, part in enumerate(parts)
    ]
    told = [filter_reason(band, each) for each in groups]
    assert told[:2] == [None, None]
    assert told[2] == (
        "accuracy_band: the share of samples that are right by 'correct' is not within 0.3 to 0.8"
    )
    assert assemble(1, groups, band).coefficients["keep"].tolist() == [1] * 6 + [0] * 3


def test_samples_that_a_filter_leaves_out_stay_in_the_plan_and_carry_no_loss() -> None:
    groups = [summary(GroupId(0, i, 0), (0.0, 0.5, 1.0)) for i in range(2)]
    chosen = replace(GRPO, filters=(FilterSettings("max_variance", keep=2),))
    plan = assemble(1, groups, chosen)
    assert plan.coefficients["keep"].tolist() == [1, 0, 1] * 2
    assert selection(chosen, groups[0]).left_out == {"max_variance": 1}
    # Deviation of 0 and 1 alone, not of all three
    np.testing.assert_allclose(plan.coefficients["advantage"][:3], [-(0.5**0.5), 0, 0.5**0.5], 1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_none_is_named_before_it_is_an_advantage(bad: float) -> None:
    groups = [summary(GroupId(0, i, 0), (0.5, 1.0 if i == 0 else bad)) for i in range(2)]
    told = rf"task {groups[1].task_id}, sample 1 of group .*: its reward is {bad}, from components"
    for algorithm in (GRPO, DPO, replace(PRESETS["rejection_sampling"], samples_per_prompt=2)):
        assert filter_reason(algorithm, groups[1]) is None, "it is refused, and not passed over"
        with pytest.raises(ValueError, match=told):
            assemble(1, groups, algorithm)


def test_imitation_reads_no_rewards() -> None:
    plan = assemble(1, [summary(GroupId(0, 0, 0), (float("nan"),))], PRESETS["sft"])
    assert plan.coefficients["advantage"].tolist() == [1.0]


def test_samples_that_a_bound_ended_count_in_the_baseline_and_carry_no_loss() -> None:
    groups = [
        replace(summary(GroupId(0, i, 0), (0.0, 2.0)), is_truncated=np.array(cut))
        for i, cut in enumerate(([True, False], [False, False], [True, True]))
    ]
    masked = assemble(1, groups, GRPO, masks_truncated=True)
    assert masked.coefficients["keep"].tolist() == [0, 1, 1, 1, 0, 0]
    assert masked.coefficients["keep"].dtype == np.float32
    plain = assemble(1, groups, GRPO)
    assert plain.coefficients["keep"].tolist() == [1.0] * 6
    for name in ("advantage", "weight"):
        np.testing.assert_array_equal(masked.coefficients[name], plain.coefficients[name])
    flat = [replace(summary(GroupId(0, 0, 0), (1.0, 1.0)), is_truncated=np.array([False, True]))]
    assert assemble(1, flat, DAPO, masks_truncated=True).coefficients["keep"].tolist() == [0, 0]


def test_a_loss_that_compares_gets_pairs_of_rows_and_each_group_is_a_unit() -> None:
    groups = [
        replace(summary(GroupId(0, 0, 0), (0.0, 2.0, 1.0)), margin=0.5),
        summary(GroupId(0, 1, 0), (3.0, 3.0)),
        summary(GroupId(0, 2, 0), (1.0, 0.0)),
    ]
    plan = assemble(1, groups, DPO)
    assert plan.pair_P2.tolist() == [[1, 0], [5, 6]]
    assert plan.margin_P.tolist() == [0.5, 0.0]
    assert plan.unit_N.tolist() == plan.group_N.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert plan.coefficients["keep"].tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert (plan.pair_P2.dtype, plan.margin_P.dtype) == (np.int32, np.float32)
    every = assemble(1, groups, REWARD_MODEL)
    assert every.pair_P2.tolist() == [[1, 0], [1, 2], [2, 0], [5, 6]]
    assert every.margin_P.tolist() == [0.5, 0.5, 0.5, 0.0]
    assert assemble(1, groups, GRPO).pair_P2.shape == (0, 2)


def test_labels_of_rows_that_can_train_each_a_unit_of_its_own() -> None:
    kto = PRESETS["kto"]
    groups = [summary(GroupId(0, 0, 0), (0.0, 2.0, 0.5)), summary(GroupId(0, 1, 0), (1.0, 1.0))]
    plan = assemble(1, groups, kto)
    assert plan.coefficients["label"].tolist() == [0, 1, 0, 1, 1]
    assert plan.coefficients["keep"].tolist() == [1] * 5
    assert plan.unit_N.tolist() == [0, 1, 2, 3, 4]
    assert plan.pair_P2.shape == (0, 2)
    silent = replace(groups[1], num_tokens=np.array([2, 0], np.int32))
    assert assemble(1, [silent], kto).coefficients["keep"].tolist() == [1, 0]
    assert filter_reason(kto, groups[1]) is None


def test_margins_of_weights_are_those_of_the_data_or_of_the_rewards() -> None:
    groups = [summary(GroupId(0, 0, 0), (0.5, 2.0)), summary(GroupId(0, 1, 0), (1.0, 0.25))]
    groups[0] = replace(groups[0], margin=-0.75)
    assert assemble(1, groups, PRESETS["madpo"]).margin_P.tolist() == [-0.75, 0.75]
    assert assemble(1, groups, PRESETS["dpo"]).margin_P.tolist() == [-0.75, 0.0]


def test_labels_of_a_prompt_are_one_unit_where_the_loss_couples_them() -> None:
    groups = [summary(GroupId(0, 0, 0), (0.0, 2.0, 0.5)), summary(GroupId(0, 1, 0), (1.0, 1.0))]
    plan = assemble(1, groups, PRESETS["pacs"])
    assert plan.coefficients["label"].tolist() == [0, 1, 0, 1, 1]
    assert plan.unit_N.tolist() == [0, 0, 0, 1, 1]
    assert plan.pair_P2.shape == (0, 2)


def test_the_best_that_can_train_are_imitated() -> None:
    raft, rejection = PRESETS["raft"], PRESETS["rejection_sampling"]
    group = summary(GroupId(0, 0, 0), (0.0, 1.0, 2.0))
    assert assemble(1, [group], raft).coefficients["keep"].tolist() == [0, 0, 1]
    cut = replace(group, is_truncated=np.array([False, False, True]))
    masked = assemble(1, [cut], raft, masks_truncated=True)
    assert masked.coefficients["keep"].tolist() == [0, 1, 0]
    assert assemble(1, [group], rejection).coefficients["keep"].tolist() == [0, 1, 1]
    wrong = summary(GroupId(0, 1, 0), (0.0, 0.5))
    told = "none_kept: no sample that can train has a reward above 0.5"
    assert filter_reason(rejection, wrong) == told
    assert filter_reason(rejection, group) is filter_reason(raft, wrong) is None
    weighed = assemble(1, [group], PRESETS["weighted_sft"]).coefficients["weight"]
    np.testing.assert_allclose(weighed, np.exp([0.0, 1.0, 2.0]), rtol=1e-6)
    broken = summary(GroupId(0, 2, 0), (float("nan"), 1.0))
    with pytest.raises(ValueError, match="its reward is nan"):
        assemble(1, [broken], raft)


def test_distillation_reads_no_rewards() -> None:
    plan = assemble(1, [summary(GroupId(0, 0, 0), (float("nan"), 1.0))], PRESETS["distillation"])
    assert plan.coefficients["keep"].tolist() == [1.0, 1.0]


def test_groups_without_a_pair_are_filtered_by_name() -> None:
    flat, varied = summary(GroupId(0, 0, 0), (0.5, 0.5)), summary(GroupId(0, 1, 0), (0.5, 0.6))
    told = filter_reason(DPO, flat)
    assert told is not None and told.startswith("no_pair: ")
    assert filter_reason(DPO, varied) is None
    picky = replace(DPO, pair_margin=0.2)
    assert filter_reason(picky, varied) == (
        "no_pair: no two samples that can train have rewards that differ by 0.2 or more"
    )
    assert assemble(1, [varied], picky).pair_P2.shape == (0, 2)
    rounded = summary(GroupId(0, 0, 0), (0.9, 0.8))
    assert filter_reason(replace(DPO, pair_margin=0.1), rounded) is None
    silent = replace(varied, num_tokens=np.array([2, 0], np.int32))
    assert filter_reason(DPO, silent) is not None
    assert assemble(1, [silent, varied], DPO).pair_P2.tolist() == [[3, 2]]
    cut = replace(varied, is_truncated=np.array([True, False]))
    assert filter_reason(DPO, cut) is None
    assert filter_reason(DPO, cut, masks_truncated=True) is not None
    assert assemble(1, [cut, varied], DPO, masks_truncated=True).pair_P2.tolist() == [[3, 2]]


def beside(position: int, kind: CompanionKind, reward: float) -> GroupSummary:
    """Samples of rewards 0 and 1, of 3 and 4 tokens; the companion has 9, of which 5 train."""
    companion = CompanionSummary(kind, reward, 5, 9)
    parts = {"correct": [0.0, 1.0]}
    return replace(summary(GroupId(0, position, 0), (0.0, 1.0), parts), companion=companion)


def test_a_greedy_row_is_the_baseline_and_does_not_train() -> None:
    remax = replace(PRESETS["remax"], samples_per_prompt=2)
    plan = assemble(1, [beside(0, "greedy", 0.25), beside(1, "greedy", 1.0)], remax)
    assert plan.group_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert plan.sample_N.tolist() == [0, 1, COMPANION] * 2
    assert plan.unit_N.tolist() == list(range(6))
    assert plan.lengths_N.tolist() == [3, 4, 9] * 2
    assert plan.num_tokens_N.tolist() == [2, 2, 5] * 2
    assert plan.coefficients["keep"].tolist() == [1, 1, 0] * 2
    np.testing.assert_allclose(plan.coefficients["advantage"], [-0.25, 0.75, 0, -1, 0, 0])
    types = (plan.sample_N, plan.lengths_N, plan.num_tokens_N)
    assert {column.dtype.name for column in types} == {"int32"}


def test_a_given_row_trains_with_the_samples() -> None:
    grao = PRESETS["grao"]
    plan = assemble(1, [beside(0, "given", 2.0)], grao, masks_truncated=True)
    assert plan.coefficients["keep"].tolist() == [1, 1, 1]
    # Rewards 0, 1, 2 of deviation 1: -1, 0, 1 among each other
    wanted = [-1.6 * 3 / 2, 0, 3 * (0.5 + 0.6 / 2)]
    np.testing.assert_allclose(plan.coefficients["advantage"], wanted, rtol=1e-5)


def test_every_sample_is_compared_with_a_written_row() -> None:
    """Rows of two groups: 0, 1 and the row 2; 3, 4 and the row 5, which draws with the sample 4."""
    xpo = replace(PRESETS["xpo"], samples_per_prompt=2)
    groups = [beside(0, "written", 0.5), beside(1, "written", 1.0)]
    plan = assemble(1, groups, xpo)
    assert plan.pair_P2.tolist() == [[1, 2], [2, 0], [5, 3]]
    assert plan.sample_N.tolist() == [0, 1, COMPANION] * 2
    assert plan.unit_N.tolist() == plan.group_N.tolist()
    assert plan.coefficients["keep"].tolist() == [1, 1, 1, 1, 0, 1]
    assert plan.margin_P.tolist() == [0.0] * 3
    assert [filter_reason(xpo, group) for group in groups] == [None, None]
    wide = replace(xpo, pair_margin=0.6)
    assert filter_reason(wide, groups[0]) == (
        "no_pair: no sample that can train has another reward than the row beside it by 0.6 or more"
    )
    assert assemble(1, groups, wide).pair_P2.tolist() == [[5, 3]]


def test_rows_that_cannot_train_are_compared_with_no_written_row() -> None:
    xpo = PRESETS["xpo"]
    draws = replace(beside(0, "written", 1.0), num_tokens=np.array([0, 2], np.int32))
    assert filter_reason(xpo, draws) is not None, "the other sample has nothing to train"
    assert filter_reason(xpo, beside(0, "written", 1.0)) is None
    group = beside(1, "written", 0.5)
    assert group.companion is not None
    cut = replace(group, companion=group.companion._replace(is_truncated=True))
    assert filter_reason(xpo, cut) is None
    assert filter_reason(xpo, cut, masks_truncated=True) is not None
    assert assemble(1, [cut, group], xpo, masks_truncated=True).pair_P2.tolist() == [[4, 5], [5, 3]]
    empty = replace(group, companion=group.companion._replace(num_tokens=0))
    assert filter_reason(xpo, empty) is not None


def test_a_companion_that_is_not_asked_for_is_no_row() -> None:
    plan = assemble(1, [beside(0, "given", 2.0)], GRPO)
    assert plan.sample_N.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "found"), [("remax", "a given one"), ("grao", "none"), ("xpo", "a given one")]
)
def test_a_group_without_its_companion_is_named(name: str, found: str) -> None:
    group = beside(3, "given", 1.0)
    if found == "none":
        group = replace(group, companion=None)
    with pytest.raises(ValueError, match=rf"task-3, group 0.3.0: .* companion and .* has {found}"):
        assemble(1, [group], PRESETS[name])


def test_a_group_whose_samples_are_equal_may_still_teach_beside_another_row() -> None:
    zero = replace(PRESETS["remax"], filters=(FilterSettings("zero_variance"),))
    alike = replace(beside(0, "greedy", 1.0), rewards=np.ones(2, np.float32))
    assert filter_reason(zero, alike) == "zero_variance: all rewards of the group are equal"
    assert filter_reason(zero, replace(alike, rewards=np.zeros(2, np.float32))) is None
    # Another algorithm does not look at it
    assert filter_reason(DAPO, replace(alike, rewards=np.zeros(2, np.float32))) is not None
