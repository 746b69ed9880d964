"""What is too old, on the driver's summaries and on the ranks' rows alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from manta.actors.rows import rows_of
from manta.algorithms.presets import PRESETS
from manta.envs.records import ScoredGroup, VersionSpan, WeightVersion
from manta.envs.summaries import summarise
from manta.orchestrator.age_policy import NO_LIMIT, AgePolicy, without_older
from manta.orchestrator.assemble import assemble
from tests.tiny import groups_of


def aged_groups() -> list[ScoredGroup]:
    """Every trajectory: tokens before 8 of weights 3, before 12 of weights 4, then of weights 6."""
    spans = tuple(
        VersionSpan(start, WeightVersion(step, 0)) for start, step in ((0, 3), (8, 4), (12, 6))
    )
    return [
        replace(
            group,
            trajectories=tuple(
                replace(t, weight_versions=tuple(s for s in spans if s.start < len(t.token_ids)))
                for t in group.trajectories
            ),
        )
        for group in groups_of((3, 2), seed=4)
    ]


def test_trained_tokens_are_counted_by_the_version_that_sampled_them() -> None:
    for group in aged_groups():
        summary = summarise(group)
        bounds = {3: (0, 8), 4: (8, 12), 6: (12, 99)}
        for version, count_n in summary.tokens_by_version.items():
            start, end = bounds[version.step]
            expected = [int(t.loss_mask[start:end].sum()) for t in group.trajectories]
            assert count_n.tolist() == expected
        np.testing.assert_array_equal(sum(summary.tokens_by_version.values()), summary.num_tokens)


@pytest.mark.parametrize("step", [5, 6, 7])
def test_the_driver_counts_what_the_ranks_train(step: int) -> None:
    policy = AgePolicy(1, "mask_tokens")
    oldest = policy.oldest_that_trains(step)
    assert oldest is not None
    assert oldest == step - 2
    groups = aged_groups()
    summaries = [without_older(summarise(group), oldest) for group in groups]
    plan = assemble(step, summaries, PRESETS["grpo"], oldest)
    rows = rows_of(plan, {group.id: group for group in groups}, range(5))
    first = {3: 0, 4: 8, 5: 12}[step - 2]
    for row, trajectory in zip(
        rows, [t for group in groups for t in group.trajectories], strict=True
    ):
        expected = trajectory.loss_mask & (np.arange(len(trajectory.loss_mask)) >= first)
        np.testing.assert_array_equal(row.loss_mask, expected)
    masked = sum(int(t.loss_mask[:first].sum()) for group in groups for t in group.trajectories)
    assert sum(summary.num_too_old for summary in summaries) == masked


def test_a_group_is_as_old_as_its_oldest_token() -> None:
    summary = summarise(aged_groups()[0])
    policy = AgePolicy(2, "drop_and_replace")
    assert policy.why_dropped(6, summary) is None
    assert policy.why_dropped(7, summary) == "too old: 3 steps, at most 2 may train"
    assert AgePolicy(2, "wait").why_dropped(7, summary) is None
    assert AgePolicy(2, "mask_tokens").why_dropped(7, summary) is None
    given = replace(summary, oldest=None)
    assert policy.why_dropped(7, given) is None
    assert NO_LIMIT.why_dropped(99, summary) is None
    assert NO_LIMIT.oldest_that_trains(99) is None
