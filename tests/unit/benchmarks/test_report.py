from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Figure, write


def figure(value: float, bar: float | None, better: str) -> Figure:
    return Figure("speed", value, "x", bar, None, better, [[2.0, 1.0]])  # type: ignore[arg-type]


def test_a_figure_is_held_to_its_bar_in_its_own_direction() -> None:
    assert figure(2.0, 2.0, "higher").holds() is True
    assert figure(1.9, 2.0, "higher").holds() is False
    assert figure(1.9, 2.0, "lower").holds() is True
    assert figure(2.1, 2.0, "lower").holds() is False
    assert figure(2.1, None, "lower").holds() is None


def test_a_result_holds_what_a_reader_needs_to_judge_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        "demo", "twice as fast", [figure(1.9, 2.0, "higher")], ["numpy", "nope"], 2, tmp_path
    )
    record = json.loads(path.read_text())
    assert path == tmp_path / "demo.json"
    assert set(record) == {
        "benchmark",
        "claim",
        "figures",
        "hardware",
        "versions",
        "commit",
        "date",
    }
    assert record["figures"] == [
        {
            "name": "speed",
            "value": 1.9,
            "unit": "x",
            "bar": 2.0,
            "aim": None,
            "better": "higher",
            "samples": [[2.0, 1.0]],
        }
    ]
    assert record["hardware"]["cores_used"] == 2
    assert record["versions"]["nope"] == "not installed"
    shown = capsys.readouterr().out
    assert "twice as fast" in shown
    assert "NO" in shown
