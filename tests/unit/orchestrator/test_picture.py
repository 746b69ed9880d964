from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from manta.orchestrator.metrics import MetricsLine
from manta.orchestrator.picture import (
    Curve,
    curve,
    draw_learning_curve,
    has_curve,
    name_rows,
    run_steps,
)

PNG = b"\x89PNG\r\n\x1a\n"


def line(stage: str, step: int, **values: float) -> MetricsLine:
    return MetricsLine(stage, step, float(step), values)


def run(scale: float = 1.0) -> list[MetricsLine]:
    start = [line("warm-start", step, **{"learner/loss": 1.0}) for step in range(1, 6)]
    start.append(line("warm-start", 5, **{"eval/accuracy": 0.4}))
    for step in range(1, 60):
        metrics = {
            "reward/mean": scale * step / 60,
            "length/mean": 12.0,
            "learner/kl_reference": 0.01,
            "learner/entropy": 0.5,
            "groups/zero_variance_share": 0.2,
        }
        start.append(line("rl", step, **metrics))
    return [*start, line("rl", 59, **{"eval/accuracy": 0.9})]


def test_steps_rise_over_stages_whichever_way_they_are_counted() -> None:
    by_stage = [line("a", 1), line("a", 2), line("b", 0), line("b", 1)]
    over_run = [line("a", 1), line("a", 2), line("b", 2), line("b", 3)]
    assert [moved.step for moved in run_steps(by_stage)] == [1, 2, 2, 3]
    assert [moved.step for moved in run_steps(over_run)] == [1, 2, 2, 3]


def test_a_curve_has_a_piece_a_stage_and_leaves_gaps_out() -> None:
    lines = [line("a", 1, r=0.1), line("a", 2), line("a", 3, r=math.nan), line("b", 3, r=0.3)]
    again = line("b", 3, r=0.4)
    assert curve([*lines, again], "r") == Curve((((1,), (0.1,)), ((3,), (0.4,))))


@pytest.mark.parametrize(
    "lines",
    [
        run(),
        run(scale=-7.0),
        [line("rl", 3, **{"reward/mean": 0.5})],
        [line("rl", 0, **{"eval/accuracy": 0.5})],
        [line("rl", 1, **{"reward/mean": 2.0, "learner/kl_reference": 0.1})],
        [line("rl", 1, **{"reward/mean": 2.0, "groups/zero_variance_share": 0.1})],
    ],
    ids=["two stages", "another scale", "one reward", "one accuracy", "no lengths", "no entropy"],
)
def test_a_png_is_drawn(lines: list[MetricsLine], tmp_path: Path) -> None:
    assert has_curve(lines)
    draw_learning_curve(lines, tmp_path / "learning_curve.png", "addition")
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(PNG)


def test_names_of_short_stages_stand_one_above_the_other() -> None:
    assert name_rows(["warm-start", "rl"], [0, 200], 400) == [0, 0]
    names = ["warm-start", "samples", "reward-model", "rl"]
    assert name_rows(names, [0, 70, 107, 407], 467) == [0, 0, 1, 0]
    assert name_rows(["first", "second", "third"], [0, 1, 2], 400) == [0, 1, 2]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    for lines in ([], [line("rl", 1, **{"learner/loss": 1.0})]):
        assert not has_curve(lines)
        with pytest.raises(ValueError, match="neither rewards nor held-out accuracies"):
            draw_learning_curve(lines, tmp_path / "learning_curve.png", "addition")


def test_what_a_driver_imports_stays_light() -> None:
    modules = "display metrics phases picture run_directory status summary tracking"
    imports = ";".join(f"import manta.orchestrator.{name}" for name in modules.split())
    heavy = "{'torch', 'ray', 'matplotlib', 'wandb', 'transformers'}"
    code = f"import sys;{imports};print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
