"""The table of all results."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import names, show
from benchmarks.report import RESULTS, Figure, write


def test_every_result_is_shown_and_a_broken_bar_is_told(tmp_path: Path) -> None:
    held = Figure("speed", 2.5, "x", 2.0, None, "higher", [2.5])
    broken = Figure("delay", 70.0, "ms", 60.0, None, "lower", [70.0])
    write("first", "is fast", [held], [], 2, tmp_path)
    console = Console(record=True, width=120)
    assert show(tmp_path, console)
    write("second", "is prompt", [held, broken], [], 2, tmp_path)
    assert not show(tmp_path, console)
    text = console.export_text()
    assert "first: is fast" in text
    assert "second: is prompt" in text
    assert "NO" in text


def test_what_a_repetition_did_not_reach_is_no_number(tmp_path: Path) -> None:
    partly = Figure("samples needed", None, "", None, None, "lower", [512.0, None])
    write("first", "learns", [partly], [], 2, tmp_path)
    console = Console(record=True, width=120)
    assert show(tmp_path, console), "without a bar it only informs"
    assert "samples needed" in console.export_text()
    assert Figure("time", None, "s", 3.0, None, "lower", [None]).holds() is False
    with pytest.raises(ValueError, match="not JSON compliant"):
        write("second", "is JSON", [replace(partly, value=math.nan)], [], 2, tmp_path)


def test_without_results_it_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--run"):
        show(tmp_path, Console())


def test_the_benchmarks_are_the_files_that_write_a_result() -> None:
    assert {"engine", "vs_trl", "driver", "driver_cpu", "algorithms"} <= set(names())
    assert not {"report", "__main__", "bare_calls"} & set(names())
    assert {path.stem for path in RESULTS.glob("*.json")} <= set(names())
