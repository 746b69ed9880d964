"""Ratios and advantages of a step against numpy, however tokens are dealt to batches and ranks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.algorithms import log_histogram
from manta.algorithms.step_tally import Distributions, StepTally
from tests.unit.algorithms.ragged import Rows, ragged_and_split


def alone(values: Tensor) -> Tensor:
    return values


def counts_T(rows: Rows) -> Tensor:
    weight_R = rows.columns["weight"] * rows.columns["keep"]
    return torch.repeat_interleave(weight_R, rows.counts_R) != 0


def advantage_T(rows: Rows) -> Tensor:
    return torch.repeat_interleave(rows.columns["advantage"], rows.counts_R)


def filled(tally: StepTally, rows: Rows) -> StepTally:
    current_T = rows.statistics()["logprob"]
    ratio_T = torch.exp(current_T - rows.proximal_T)
    tally.add_ratios(ratio_T, current_T, rows.behaviour_T, counts_T(rows))
    tally.add_advantages(advantage_T(rows), counts_T(rows))
    return tally


def test_figures_match_numpy() -> None:
    rows = Rows.random([500, 0, 300, 80], 3)
    rows.columns["keep"][:] = torch.tensor([1.0, 1, 1, 0])
    found = filled(StepTally(), rows).distributions(alone).figures
    at = counts_T(rows).numpy()
    current = rows.statistics()["logprob"].numpy()
    weights = np.exp(current - rows.behaviour_T.numpy())[at]
    assert found["ess"] == pytest.approx(weights.sum() ** 2 / (at.sum() * (weights**2).sum()))
    log_ratio = (current - rows.proximal_T.numpy())[at]
    for name, share in (("p01", 0.01), ("p50", 0.5), ("p99", 0.99)):
        expected = float(np.quantile(log_ratio, share, method="inverted_cdf"))
        assert math.log(found[f"ratio_{name}"]) == pytest.approx(expected, rel=0.02, abs=2e-9)
    advantages = advantage_T(rows).numpy()[at]
    assert found["advantage/mean"] == pytest.approx(advantages.mean())
    assert found["advantage/std"] == pytest.approx(advantages.std())
    expected = float(np.quantile(advantages, 0.05, method="inverted_cdf"))
    assert found["advantage/p05"] == pytest.approx(expected, rel=0.02)


def test_the_policy_that_sampled_has_ratios_of_one() -> None:
    rows = Rows.random([4, 2], 1)
    current_T = rows.statistics()["logprob"]
    tally = StepTally()
    everything_T = torch.ones(6, dtype=torch.bool)
    tally.add_ratios(torch.ones(6), current_T, current_T, everything_T)
    tally.add_advantages(torch.tensor([0.0, 0, 0, 2, 2, -2]), everything_T)
    figures, histograms = tally.distributions(alone)
    assert {name: figures[name] for name in ("ess", "ratio_p01", "ratio_p99")} == {
        "ess": 1.0,
        "ratio_p01": 1.0,
        "ratio_p99": 1.0,
    }
    assert figures["advantage/zero_share"] == 0.5
    assert figures["advantage/p50"] == 0.0
    edges, counts = histograms["advantage"]
    assert (len(edges), len(counts), sum(counts)) == (33, 32, 6)
    assert (counts[0], counts[-1], counts[16]) == (1, 2, 3)
    assert (edges[0], edges[-1]) == pytest.approx((-2, 2), rel=0.02)
    assert sum(histograms["log_ratio"][1]) == 6


def test_what_is_not_known_is_left_out() -> None:
    assert StepTally().distributions(alone) == Distributions({}, {})
    tally = StepTally()
    some_T = torch.tensor([True, False])
    tally.add_ratios(torch.tensor([2.0, math.inf]), torch.zeros(2), None, some_T)
    figures = tally.distributions(alone).figures
    assert set(figures) == {"ratio_p01", "ratio_p50", "ratio_p99"}
    assert figures["ratio_p99"] == pytest.approx(2.0, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(ragged_and_split(), st.integers(1, 3), st.integers(0, 2**16))
def test_neither_batches_nor_ranks_change_the_figures(
    shape: tuple[list[int], list[list[int]]], world_size: int, seed: int
) -> None:
    lengths, parts = shape
    rows = Rows.random(lengths, seed)
    tallies = [StepTally() for _ in range(world_size)]
    for part, tally in zip(parts, itertools.cycle(tallies)):
        filled(tally, rows.take(part))
    sent: list[Tensor] = []
    for tally in tallies:
        tally.distributions(lambda values: sent.append(values) or values)  # type: ignore[func-returns-value]
    total = torch.stack(sent).sum(0)
    whole = filled(StepTally(), rows).distributions(alone)
    for tally in tallies:
        found = tally.distributions(lambda _: total)
        assert found.figures == pytest.approx(whole.figures, rel=1e-9, abs=1e-12)
        assert found.histograms == whole.histograms


def test_numbers_of_any_size_have_a_bin() -> None:
    values = torch.tensor([-math.inf, -1e9, -1e-12, 0.0, 1e-12, 5e5, math.inf])
    histogram = log_histogram.counts(values)
    assert histogram.sum() == 7 and len(histogram) == log_histogram.BINS
    assert log_histogram.quantile(histogram, 0.01) == pytest.approx(-1e3)
    assert log_histogram.quantile(histogram, 0.5) == 0.0
    assert log_histogram.quantile(histogram, 1.0) == pytest.approx(1e3)


def test_a_weight_that_no_number_holds_the_square_of_leaves_one_sample() -> None:
    tally, everything_T = StepTally(), torch.ones(4, dtype=torch.bool)
    current_T = torch.tensor([-1.0, -1, -1, -1])
    behaviour_T = torch.tensor([-400.0, -1, -1, -1])
    tally.add_ratios(None, current_T, behaviour_T, everything_T)
    assert tally.distributions(alone).figures["ess"] == pytest.approx(0.25)
