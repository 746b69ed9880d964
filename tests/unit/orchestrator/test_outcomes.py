"""pass@k and shares of groups by hand, and what the filters left out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manta.algorithms.part_settings import FilterSettings
from manta.algorithms.presets import PRESETS
from manta.envs.records import GroupId, GroupSummary
from manta.orchestrator.outcomes import outcome_metrics
from manta.orchestrator.step_groups import LeftOut
from tests.unit.orchestrator.groups import summary
from tests.unit.orchestrator.tiny_run import load

NAN = float("nan")
GRPO = PRESETS["grpo"]


def right(*values: float) -> GroupSummary:
    return summary(GroupId(0, 0, 0), values, {"correct": values})


def brute(groups: list[list[float]], k: int) -> float:
    """The share of all subsets of k samples with a right one, mean over groups."""
    shares = []
    for values in groups:
        teams = list(itertools.combinations(values, k))
        shares.append(sum(max(team) > 0.5 for team in teams) / len(teams))
    return float(np.mean(shares))


def test_pass_at_k_is_the_share_of_teams_with_a_right_sample() -> None:
    groups = [[1.0, 0, 0, 0, 1], [0.0] * 5, [1.0] * 5, [0.0, 0, 0, 0, 0.6]]
    metrics = outcome_metrics([right(*values) for values in groups], [], "correct", GRPO)
    for k in (1, 2, 4):
        assert metrics[f"pass_at/{k}"] == pytest.approx(brute(groups, k)), k
    assert "pass_at/8" not in metrics
    assert metrics["groups/all_right_share"] == metrics["groups/all_wrong_share"] == 0.25
    assert metrics["groups/zero_variance_share"] == 0.5


def test_samples_without_the_component_do_not_count() -> None:
    groups = [right(1.0, NAN, 0.0), right(0.0, 0.0, 0.0, 1.0)]
    groups[0] = replace(groups[0], rewards=np.array([1, 1, 0], np.float32))
    metrics = outcome_metrics(groups, [], "correct", GRPO)
    assert metrics["pass_at/1"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert metrics["pass_at/2"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["pass_at/4"] == 1.0, "of the group that has four"
    for component in (None, "judge"):
        assert not any("pass_at" in n for n in outcome_metrics(groups, [], component, GRPO))


def test_one_sample_a_prompt_has_an_accuracy_and_no_group() -> None:
    metrics = outcome_metrics([right(1.0), right(0.0), right(0.0)], [], "correct", PRESETS["ppo"])
    assert metrics == {"pass_at/1": pytest.approx(1 / 3)}


def test_what_was_filtered_counts_as_sampled_and_is_named() -> None:
    kept = [right(1.0, 0.0), right(0.0, 1.0)]
    left_out = [LeftOut(right(1.0, 1.0), "zero_variance: all are equal")]
    left_out += [LeftOut(right(0.0, 0.0), "accuracy_band: not within")] * 2
    band = FilterSettings("accuracy_band")
    settings = replace(PRESETS["dapo"], filters=(*PRESETS["dapo"].filters, band))
    metrics = outcome_metrics(kept, left_out, "correct", settings)
    assert metrics["groups/zero_variance_share"] == 3 / 5
    assert metrics["pass_at/1"] == pytest.approx((0.5 + 0.5 + 1) / 5)
    assert metrics["groups/filtered/zero_variance"] == 1
    assert metrics["groups/filtered/accuracy_band"] == 2
    assert metrics["groups/filtered_share"] == 3 / 5
    assert not any("filtered" in name for name in outcome_metrics(kept, [], "correct", GRPO))


def test_samples_that_are_left_out_are_counted() -> None:
    chosen = replace(GRPO, filters=(FilterSettings("max_variance", keep=2),))
    groups = [right(1.0, 0.0, 1.0), right(1.0, 0.0), right(0.0, 0.0, 0.0, 1.0)]
    metrics = outcome_metrics(groups, [], "correct", chosen)
    assert metrics["samples/filtered/max_variance"] == 3
    assert not any(name.startswith("groups/filtered") for name in metrics)


def test_groups_that_have_no_pair_are_named_too() -> None:
    told = [LeftOut(right(1.0, 1.0), "no_pair: no two samples")]
    policy = replace(PRESETS["dpo"], samples_from="policy")
    metrics = outcome_metrics([right(1.0, 0.0)], told, "correct", policy)
    assert metrics["groups/filtered/no_pair"] == 1
    assert metrics["groups/filtered_share"] == 0.5


def test_nothing_sampled_has_no_figures() -> None:
    assert outcome_metrics([], [], "correct", GRPO) == {}
    given = [summary(GroupId(0, 0, 0), (1.0,))]
    assert outcome_metrics(given, [], None, PRESETS["sft"]) == {}


def test_right_is_what_evaluation_counts(tmp_path: Path) -> None:
    stages = load(tmp_path).stages
    assert stages[1].right_component == "correct"
    without = replace(stages[1], evaluate=None)
    assert without.right_component == "correct"
    assert replace(without, reward=None).right_component is None
