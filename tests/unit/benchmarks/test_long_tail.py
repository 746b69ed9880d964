"""The bookkeeping of the benchmark; what it measures is its own business."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.long_tail import (
    EPOCH,
    MEASURED,
    PLAIN,
    SETTINGS,
    Measured,
    fastest,
    figures,
    measured,
)
from benchmarks.long_tail import run_file as benchmark_file
from manta.envs.records import GroupId
from manta.orchestrator import run_file
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.ledger import Entry
from manta.orchestrator.metrics import MetricsLine
from manta.orchestrator.supply import OVERTAKEN


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_a_run_file_that_fits(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(benchmark_file("x", tmp_path, SETTINGS[name])))
    assert cross_check(run_file.load(str(path), [])) == []


def line(step: int, seconds: float, took: float, idle: float) -> MetricsLine:
    values = {
        "time/step": took,
        "rollout/idle_share": idle,
        "length/mean": float(step),
        "staleness/max": float(step % 2),
    }
    return MetricsLine("rl", step, seconds, values)


def test_the_first_epoch_does_not_count() -> None:
    lines = [line(i + 1, 10.0 * (i + 1), 99.0, 0.9) for i in range(EPOCH)]
    start = lines[-1].seconds
    lines += [line(i + 1, start + 2.0 * (i + 1), 1.0 + 2.0 * (i % 2), 0.2 + 0.4 * (i % 2))
              for i in range(MEASURED)]  # fmt: skip
    entries = [
        Entry("rl", GroupId(0, 0, 0), "dropped", 1, OVERTAKEN),
        Entry("rl", GroupId(0, 1, 0), "dropped", 1, "the world broke"),
    ]
    found = measured(lines, entries)
    assert found == Measured((1.0, 3.0) * 4, (0.2, 0.2 + 0.4) * 4, 4.5, 1.0, 1)
    assert fastest([found]) == (2.0, pytest.approx((0.2 + 3 * 0.6) / 4))
    with pytest.raises(ValueError, match="11 lines of metrics, not 12"):
        measured(lines[1:], [])


def test_a_step_counts_as_in_its_fastest_round() -> None:
    rounds = [Measured(seconds, idle, 1.0, 0.0, 0) for seconds, idle in (
        ((1.0, 9.0), (0.1, 0.9)), ((5.0, 3.0), (0.8, 0.3)),
    )]  # fmt: skip
    assert fastest(rounds) == (2.0, pytest.approx((0.1 + 3 * 0.3) / 4))


def test_ratios_are_to_plain_and_what_is_wrong_shows() -> None:
    found = {name: [Measured((2.0, 2.0), (0.4, 0.4), 20.0, 0.0, 0)] * 2 for name in SETTINGS}
    found[PLAIN] = [
        Measured((3.0, 9.0), (0.6, 0.9), 25.0, 0.0, 0),
        Measured((5.0, 4.0), (0.7, 0.7), 25.0, 0.0, 0),
    ]
    found["carried over"] = [Measured((2.0, 2.0), (0.4, 0.4), 25.0, 2.0, 1)] * 2
    by_name = {figure.name: figure for figure in figures(found)}
    assert by_name["redundant samples over plain"].value == 3.5 / 2.0
    assert by_name["redundant samples over plain"].samples == [(2.0, 6.0), (2.0, 4.5)]
    assert by_name["redundant samples over plain"].holds() is True
    assert by_name["redundant samples: mean length that trains, over plain"].value == 0.8
    assert by_name["staleness past the setting"].value == 1.0
    assert by_name["staleness past the setting"].holds() is False
    assert by_name["groups lost"].value == 2.0
