"""The bookkeeping of the benchmark; what it measures is its own business."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import simulated_cluster as cluster
from benchmarks.async_speedup import STEPS, Cell, Measured, cells, drawn_lengths, figures, rate
from manta.orchestrator.metrics import MetricsLine


def test_settings_are_interleaved_and_every_second_round_goes_backwards() -> None:
    found = cells(2, 1)
    assert [cell.staleness for cell in found] == [0, 1, 2, 4, 4, 2, 1, 0, 0, 1, 2, 4]
    assert [cell.has_slow_rewards for cell in found] == [False] * 8 + [True] * 4
    assert len({cell.name for cell in found}) == 12


def test_the_mean_length_is_that_of_the_samples() -> None:
    draws = np.random.default_rng(0).lognormal(np.log(cluster.MEDIAN), cluster.SIGMA, 200_000)
    assert cluster.mean_length() == pytest.approx(np.minimum(draws, cluster.CAP).mean(), rel=0.01)
    drawn = list(drawn_lengths(Cell(4, 0, False)).elements())
    assert len(drawn) == sum(STEPS[4]) * cluster.PROMPTS * cluster.SAMPLES
    assert np.mean(drawn) == pytest.approx(cluster.mean_length(), rel=0.06)
    assert max(drawn) == cluster.CAP


def test_steps_that_fill_the_pipeline_do_not_count() -> None:
    cell = Cell(1, 0, False)
    filling, measured = STEPS[1]
    seconds = [100.0] * filling + [100.0 + 2.0 * i for i in range(1, measured + 1)]
    lines = [MetricsLine(cell.name, i, at, {}) for i, at in enumerate(seconds)]
    assert rate(cell, lines) == pytest.approx(cluster.PROMPTS * cluster.SAMPLES / 2.0)


def test_ratios_are_of_medians_and_what_is_wrong_shows() -> None:
    rates = {0: 10.0, 1: 20.0, 2: 30.0, 4: 33.0}
    found = {
        cell: Measured(rates[cell.staleness], float(cell.staleness), 0, 0) for cell in cells(1, 0)
    }
    found[Cell(2, 0, False)] = Measured(30.0, 3.0, 1, 5)
    by_name = {figure.name: figure for figure in figures(found)}
    assert by_name["staleness 2 over synchronous"].value == 3.0
    assert by_name["staleness 4 over synchronous"].holds() is True
    assert by_name["staleness past the setting"].holds() is False
    assert by_name["groups not trained"].value == 1
    assert by_name["lengths unlike the drawn"].value == 5
