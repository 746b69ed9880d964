"""What is read of a run directory, and fitted to it, on files written here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manta.actors.engines.occupancy import EngineWork
from manta.envs.records import GroupId
from manta.orchestrator import run_file
from manta.orchestrator.ledger import Entry, Ledger
from manta.orchestrator.plan.calibration import calibrate, fitted_steps
from manta.orchestrator.plan.measured import fitted, own_step
from manta.orchestrator.simulation.lengths import GroupLengths, LognormalLengths, SeenLengths
from tests.unit.orchestrator import tiny_run


def work(*steps: tuple[int, float]) -> EngineWork:
    """Of decode steps as (rows, seconds)."""
    rows = [r for r, _ in steps]
    return EngineWork(
        len(steps),
        sum(rows),
        sum(r * r for r in rows),
        sum(s for _, s in steps),
        sum(r * s for r, s in steps),
    )


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (work((1, 3.0), (4, 9.0), (8, 17.0)), (1.0, 2.0)),
        (work((5, 0.5), (5, 0.7)), (0.6, 0.0)),
        (work((2, 1.0), (4, 0.8)), (0.9, 0.0)),
        (work((2, 1.0), (4, 4.0)), (0.0, 18 / 20)),
    ],
    ids=["a line", "always the same rows", "more rows took less", "fewer took next to nothing"],
)
def test_decode_steps_are_fitted_by_rows(done: EngineWork, expected: tuple[float, float]) -> None:
    assert fitted_steps(done) == pytest.approx(expected)


STEP = {
    "samples": 32.0,
    "staleness/mean": 0.0,
    "tokens/completion": 320.0,
    "tokens/total": 512.0,
    "length/p50": 8.0,
    "length/p95": 8.0 * np.exp(1.6449 * 0.5),
    "time/step": 6.5,
    "time/evaluate": 1.0,
    "time/generate": 3.0,
    "time/learn": 2.0,
    "time/publish": 0.25,
    "time/learner/step": 1.536,
    "time/group/score": 0.125,
    "engine/busy_row_seconds": 30.0,
    "engine/steps": 4.0,
    "engine/rows": 16.0,
    "engine/rows_squared": 84.0,
    "engine/seconds": 0.36,
    "engine/row_seconds": 1.84,
    "engine/prefill_tokens": 48.0,
    "engine/prefill_seconds": 0.24,
}


def run_directory(folder: Path, *steps: dict[str, float]) -> Path:
    loaded = tiny_run.load(folder)
    root = folder / "tiny"
    root.mkdir()
    (root / "config.yaml").write_text(run_file.dump(loaded))
    lines = [{"stage": "rl", "step": i, "seconds": i, **step} for i, step in enumerate(steps, 1)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ledger = Ledger(root / "ledger.jsonl")
    outcomes = ("trained", "trained", "filtered", "dropped", "trained")
    ledger.record([Entry("rl", GroupId(0, i, 0), o, 1) for i, o in enumerate(outcomes)])  # type: ignore[arg-type]
    ledger.close()
    return root


def test_a_run_s_figures_are_found_in_its_files(tmp_path: Path) -> None:
    found = calibrate(run_directory(tmp_path, *[STEP] * 5), "rl")
    assert (found.steps, found.step_seconds) == (3, pytest.approx(5.5))
    # 4 steps of 4 rows in the mean, with spread: 0.01 s and 0.02 s a row
    assert (found.engine.base, found.engine.per_row) == pytest.approx((0.01, 0.02))
    assert found.engine.prefill_per_token == pytest.approx(0.005)
    assert found.per_pass == pytest.approx(0.003)
    assert found.learner_fixed == pytest.approx(2.0 - 1.536)
    assert found.overheads.publish == 0.25 and found.overheads.reward == 0.125
    assert found.overheads.step == pytest.approx(0.25)
    assert isinstance(found.lengths, LognormalLengths)
    assert (found.lengths.prompt, found.lengths.median) == (6, 8.0)
    assert found.lengths.sigma == pytest.approx(0.5)
    assert found.flat_share == 0.25


def test_the_fit_explains_the_run_s_own_step(tmp_path: Path) -> None:
    slow = {**STEP, "time/step": 9.0, "time/generate": 5.5}
    bare = calibrate(run_directory(tmp_path, *[slow] * 4), "rl")
    assert own_step(bare) < 0.9 * bare.step_seconds
    explained = fitted(bare)
    assert own_step(explained) == pytest.approx(bare.step_seconds, rel=0.01)
    assert explained.overheads.group > 0
    assert "fitted" in explained.told[-1]


def test_an_engine_that_does_not_tell_its_steps_has_one_speed(tmp_path: Path) -> None:
    silent = {k: v for k, v in STEP.items() if not k.startswith("engine/")}
    silent["engine/busy_row_seconds"] = 6.4
    found = calibrate(run_directory(tmp_path, silent), None)
    assert (found.engine.base, found.engine.per_row) == (0.02, 0.0)
    assert "a guess" in " ".join(found.told)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.yaml", "there is no config.yaml"), ("metrics.jsonl", "there is no metrics.jsonl")],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, missing: str, message: str) -> None:
    root = run_directory(tmp_path, STEP)
    (root / missing).unlink()
    with pytest.raises(ValueError, match=message):
        calibrate(root, "rl")


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no step of stage rl"):
        calibrate(run_directory(tmp_path), "rl")


def test_seen_groups_are_drawn_whole() -> None:
    groups = (
        GroupLengths(3, np.array([1, 2, 3], np.int32)),
        GroupLengths(7, np.array([100, 200, 300], np.int32)),
    )
    seen = SeenLengths(groups)
    drawn = [seen.draw(np.random.default_rng(seed), 5) for seed in range(40)]
    assert {each.prompt for each in drawn} == {3, 7}
    for each in drawn:
        own = groups[each.prompt == 7].answers.tolist()
        assert sorted(set(each.answers.tolist())) == own and len(each.answers) == 5
    few = seen.draw(np.random.default_rng(0), 2)
    assert len(set(few.answers.tolist())) == 2
