from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from manta.orchestrator.metrics import MetricsLine
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.summary import (
    DriverFigures,
    duration,
    summarise_run,
    summary_table,
    write_summary,
)

DRIVER = DriverFigures(
    seconds=50.0,
    seconds_by_phase={"learn": 30.0, "generate": 12.0},
    cpu_seconds=0.2,
    steps=5,
    ledger={"trained": 20, "dropped": 1},
)


def step(stage: str, number: int, seconds: float, **values: float) -> MetricsLine:
    fixed = {"samples": 8.0, "tokens/completion": 80.0, "groups": 2.0}
    return MetricsLine(stage, number, seconds, fixed | values)


def evaluation(stage: str, number: int, seconds: float, accuracy: float) -> MetricsLine:
    return MetricsLine(stage, number, seconds, {"eval/accuracy": accuracy})


GAP = "mismatch/same_version/gap_max"
LINES = [
    evaluation("warm-start", 0, 2.0, 0.01),
    step("warm-start", 1, 5.0),
    step("warm-start", 2, 9.0),
    evaluation("warm-start", 2, 10.0, 0.375),
    step("rl", 3, 20.0, **{"staleness/mean": 0.0, "staleness/max": 0.0}),
    evaluation("rl", 3, 21.0, 0.5),
    step("rl", 4, 30.0, **{"staleness/mean": 1.5, "staleness/max": 2.0}),
    step("rl", 5, 40.0, **{GAP: 1e-6, "mismatch/stale/gap_max": 0.7}),
    step("rl", 6, 48.0, **{GAP: math.nan}),
    evaluation("rl", 6, 50.0, 0.75),
]


def test_a_run_by_hand(tmp_path: Path) -> None:
    summary = summarise_run(RunDirectory(tmp_path), LINES, DRIVER, "finished", main_stage="rl")
    warm, rl = summary.stages
    assert (warm.name, warm.steps, warm.seconds) == ("warm-start", 2, 10.0)
    assert (warm.accuracy_before, warm.accuracy_after) == (0.01, 0.375)
    assert (rl.name, rl.steps, rl.seconds) == ("rl", 4, 40.0)
    assert (rl.accuracy_before, rl.accuracy_after) == (0.375, 0.75)
    assert (rl.samples_per_second, rl.tokens_per_second) == (0.8, 8.0)
    accuracies = (summary.accuracy_start, summary.accuracy_before, summary.accuracy_after)
    assert accuracies == (0.01, 0.375, 0.75)
    assert summary.samples_per_second == pytest.approx(48 / 50)
    assert (summary.staleness_mean, summary.staleness_max) == (0.75, 2.0)
    assert summary.max_logprob_gap == 1e-6
    assert summary.driver_cpu_ms_per_step == pytest.approx(40.0)


def test_stale_tokens_are_no_gap_of_the_engine(tmp_path: Path) -> None:
    lines = [step("rl", 1, 4.0, **{"mismatch/stale/gap_max": 0.7})]
    assert summarise_run(RunDirectory(tmp_path), lines, DRIVER, "finished").max_logprob_gap is None


def test_an_evaluation_ahead_of_a_stages_steps_is_its_before(tmp_path: Path) -> None:
    lines = [*LINES[:4], evaluation("rl", 2, 11.0, 0.4), *LINES[4:]]
    summary = summarise_run(RunDirectory(tmp_path), lines, DRIVER, "finished", main_stage="rl")
    assert summary.accuracy_before == 0.4
    assert summary.stages[0].accuracy_after == 0.375


def test_a_run_that_failed_before_its_first_step(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    driver = DriverFigures(1.0, {}, 0.1, 0, {})
    summary = summarise_run(directory, [], driver, "failed", error="no engine came up")
    write_summary(directory, summary)
    written = json.loads(directory.summary.read_text())
    assert (written["state"], written["error"]) == ("failed", "no engine came up")
    assert written["accuracy_after"] is None and written["driver_cpu_ms_per_step"] is None


def test_the_file_holds_every_field_and_no_nan(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    lines = [step("rl", 1, 4.0), evaluation("rl", 1, 5.0, math.nan)]
    driver = DriverFigures(5.0, {"learn": math.nan}, 0.1, 1, {"trained": 2})
    write_summary(directory, summarise_run(directory, lines, driver, "stopped"))
    written = json.loads(directory.summary.read_text())
    assert written["seconds_by_phase"] == {"learn": None}
    assert written["ledger"] == {"trained": 2}
    assert written["stages"][0]["steps"] == 1
    assert written["accuracy_after"] is None
    assert written["run_directory"] == str(tmp_path)


def test_figures_are_flat_scalars(tmp_path: Path) -> None:
    figures = summarise_run(RunDirectory(tmp_path), LINES, DRIVER, "finished").figures()
    assert figures["accuracy_after"] == 0.75
    assert figures["phase_seconds/learn"] == 30.0
    assert figures["ledger/dropped"] == 1
    assert all(isinstance(value, str | int | float) for value in figures.values())


def test_the_table_says_what_the_run_came_to(tmp_path: Path) -> None:
    summary = summarise_run(RunDirectory(tmp_path), LINES, DRIVER, "finished", "rl")
    out = io.StringIO()
    Console(file=out, width=200).print(summary_table(summary))
    text = out.getvalue()
    for expected in (
        "run finished",
        "37.5% to 75.0%",
        "1.0% to 75.0%",
        "learn 30.0 s, generate 12.0 s",
        "mean 0.75, max 2 steps",
        "20 trained, 1 dropped",
        str(tmp_path),
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.25, "4.2 s"), (59.97, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
