"""A run's life through the real command: finish, Ctrl-C, kill -9, resume, another config."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from manta.actors.processes import figures
from manta.orchestrator import status
from manta.orchestrator.ledger import read_ledger
from manta.orchestrator.supply import OVERTAKEN
from tests.e2e import runs

pytestmark = pytest.mark.e2e
STEPS = 12
PROMPTS = 8


def test_a_run_leaves_its_account(finished: Path) -> None:
    trained = runs.check_history(finished, STEPS)
    assert len(trained) == 4 * 16 + 8 * 8
    summary = runs.summary(finished)
    assert summary["state"] == "finished"
    assert isinstance(summary["accuracy_after"], float)
    assert (finished / "learning_curve.png").stat().st_size > 10_000
    assert (finished / "config.yaml").exists()
    assert len(list((finished / "trajectories").rglob("*.parquet"))) == 8


def test_engine_and_learner_agree_at_every_step(finished: Path) -> None:
    gaps = [
        line["mismatch/same_version/gap_max"]
        for line in runs.metrics(finished)
        if "mismatch/same_version/gap_max" in line
    ]
    assert len(gaps) == 8
    assert max(gaps) < 1e-4
    assert not any("mismatch/stale/tokens" in line for line in runs.metrics(finished))


def test_a_finished_run_is_not_started_again(finished: Path) -> None:
    again = runs.manta("train", runs.TINY, finished.parent, "run.deterministic=true")
    assert again.returncode == 0
    assert "finished" in again.stdout


def test_a_directory_of_another_config_is_refused(finished: Path) -> None:
    other = runs.manta("train", runs.TINY, finished.parent, "stages.rl.prompts_per_step=4")
    assert other.returncode == 2
    assert "prompts_per_step" in other.stderr


def test_more_workers_than_cores_are_refused_at_once(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    result = runs.manta("train", runs.TINY, tmp_path, "rollout.workers=500", env=cluster)
    assert result.returncode == 2
    assert "500 rollout" in result.stderr
    assert not (tmp_path / "tiny" / "config.yaml").exists()


def test_evaluating_the_newest_checkpoint_gives_the_run_s_accuracy(
    finished: Path, cluster: runs.Environment
) -> None:
    result = runs.manta("eval", runs.TINY, finished.parent, "run.deterministic=true", env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    accuracy = runs.summary(finished)["accuracy_after"]
    assert isinstance(accuracy, float)
    assert f"accuracy {accuracy:.1%}" in result.stdout


def test_the_same_seed_gives_the_same_run_even_when_killed(finished: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, then back to a checkpoint before the newest: same trajectories, losses
    and weights, to the bit, as the run that was left alone."""
    run_dir = tmp_path / "tiny"
    process = runs.start(runs.TINY, tmp_path, "run.deterministic=true")
    runs.wait_for_step(run_dir, 7)
    runs.wait_for_events(run_dir, "checkpoint", 3)
    process.kill()
    process.communicate()
    result = runs.manta("train", runs.TINY, tmp_path, "run.deterministic=true", "--resume", "4")
    assert result.returncode == 0, result.stdout + result.stderr
    [left] = runs.told(run_dir, "checkpoints left behind")
    assert left["steps"][-1] == 6
    coefs = [line["kl/coef"] for line in runs.metrics(finished) if "kl/coef" in line]
    assert len(set(coefs)) == 8
    trained = runs.check_history(run_dir, STEPS)
    expected = runs.check_history(finished, STEPS)
    assert [e.content_hash for e in trained] == [e.content_hash for e in expected]
    assert runs.weights(run_dir, STEPS) == runs.weights(finished, STEPS)
    for name in ("learner/loss", "learner/grad_norm", "kl/coef", "reward/mean", "eval/accuracy"):
        assert [m[name] for m in runs.metrics(run_dir) if name in m] == [
            m[name] for m in runs.metrics(finished) if name in m
        ]


CORRECTED = (
    "stages.rl.updates_per_step=2",
    "stages.rl.algorithm.proximal=learner",
    "stages.rl.algorithm.off_policy={correction: mask, level: sequence, low: 0.1, high: 10}",
)

TASKS = 24
CURRICULUM = (
    f"env.eval_size={100 - TASKS}",
    "stages.rl.curriculum={nearest_to: 0.5, low: 0.01}",
)


@pytest.mark.parametrize(("staleness", "ending"), [(0, signal.SIGINT), (2, signal.SIGKILL)])
def test_the_same_command_goes_on_after_ctrl_c_and_after_kill_9(
    tmp_path: Path, cluster: runs.Environment, staleness: int, ending: signal.Signals
) -> None:
    is_killed = ending == signal.SIGKILL
    every, steps = (20, 44) if is_killed else (1000, STEPS)
    overrides = [f"rollout.max_staleness={staleness}", f"checkpoint.every_steps={every}"]
    overrides += [f"stages.rl.steps={steps - 4}", *CURRICULUM]
    overrides += [*CORRECTED, f"checkpoint.path=file://{tmp_path}/kept"] if staleness else ()
    process = runs.start(runs.TINY, tmp_path, *overrides, env=cluster)
    run_dir = tmp_path / "tiny"
    if is_killed:
        # Of steps 4 and 24; the next one is the last step's
        runs.wait_for_events(run_dir, "checkpoint", 2)
    runs.wait_for_step(run_dir, 25 if is_killed else 6)
    runs.signal_group(process, ending)
    output, _ = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == (-9 if is_killed else 0), output
    assert runs.metrics(run_dir)[-1]["step"] < steps
    if not is_killed:
        assert runs.summary(run_dir)["state"] == "stopped"
    if staleness:
        overrides += ["learner.workers=2", "rollout.workers=2"]
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    if is_killed:
        assert [each["step"] for each in runs.told(run_dir, "resumed")] == [24]
    runs.check_history(run_dir, steps)
    runs.check_epochs(run_dir, "rl", TASKS)
    shards = list(tmp_path.glob(f"kept/tiny-*/step={steps:06d}/learner/model-*-of-00002.*"))
    assert len(shards) == (2 if staleness else 0)
    masked = [line for line in runs.metrics(run_dir) if "mismatch/stale/masked_share" in line]
    assert bool(masked) == (staleness > 0)
    stopped = [
        entry
        for entry in read_ledger(run_dir / "ledger.jsonl")
        if entry.reason == "the run stopped before it was trained"
    ]
    assert len(stopped) >= staleness * PROMPTS, "what was under way for the steps ahead"


def test_a_frozen_worker_is_named_and_ended_and_no_process_survives_its_driver(
    tmp_path: Path,
) -> None:
    """The doctor sees what the watchdog then acts on; the run goes on without the worker."""
    watch = ("health.every_seconds=0.5", "health.frozen_after_seconds=8", "environment.workers=2")
    # An evaluation does not outlive a worker that makes it
    longer = ("stages.rl.steps=100000", "evaluate=null")
    process = runs.start(runs.TINY, tmp_path, *watch, *longer)
    run_dir = tmp_path / "tiny"
    try:
        runs.wait_for_step(run_dir, 6)
        well = runs.doctor(run_dir)
        assert well.returncode == 0 and "It is well." in well.stdout, well.stdout + well.stderr
        assert not runs.alarms(run_dir), "nothing is wrong with a healthy run"
        workers = status.read(run_dir / "status.json").workers
        frozen = next(each for each in workers if each.name == "environment-1").identity
        assert frozen is not None
        os.kill(frozen.process.pid, signal.SIGSTOP)
        time.sleep(3)
        told = runs.doctor(run_dir).stdout
        assert "Held up by environment-1" in told and "stopped (state T)" in told, told
        [named, *_] = runs.wait_for_events(run_dir, "worker frozen")
        assert (named["role"], named["pid"]) == ("environment", frozen.process.pid)
        assert "no sign of life" in str(named["why"])
        runs.wait_for_step(run_dir, 2 + int(runs.metrics(run_dir)[-1]["step"]))
        assert figures(frozen.process) is None
    finally:
        process.kill()
        process.communicate()
    dead = runs.doctor(run_dir)
    assert dead.returncode == 1 and "The driver is dead" in dead.stdout
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(tmp_path) not in listing.stdout


def test_overtaken_groups_leave_the_engines_and_train_later(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    """Synchronous steps that take what finishes first; long answers are put off once."""
    overrides = (
        "rollout.oversample=2", "rollout.when_too_old=drop_and_replace", "rollout.max_rows=8",
        "rollout.engine=simulated", "rollout.simulated.length_median=2",
        "rollout.simulated.tokens_per_second=40", "publish.probe_tolerance=1000",
        "environment.groups_per_call=1", "evaluate=null", "rollout.dispatch=longest_first",
    )  # fmt: skip
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "tiny"
    runs.check_history(run_dir, STEPS)
    entries = [e for e in read_ledger(run_dir / "ledger.jsonl") if e.stage == "rl"]
    overtaken = [e for e in entries if e.reason == OVERTAKEN]
    places = [e.group[:2] for e in overtaken]
    assert places and len(places) == len(set(places)), "a group was overtaken twice"
    assert {e.outcome for e in entries} == {"trained", "dropped"}
    assert all(e.reason == OVERTAKEN for e in entries if e.outcome == "dropped")
    again = {e.group[:2] for e in entries if e.outcome == "trained" and e.group.attempt == 1}
    assert again and again <= set(places)
    lines = [line for line in runs.metrics(run_dir) if line["stage"] == "rl"]
    assert {line["staleness/max"] for line in lines} == {0.0}
    assert all(0.0 < line["rollout/idle_share"] < 1.0 for line in lines[1:])
    assert runs.summary(run_dir)["idle_share"] is not None


def test_the_long_tail_holds_no_step_up(tmp_path: Path, cluster: runs.Environment) -> None:
    """Redundant samples, a cap that masks, and groups that are carried over, all at once."""
    overrides = (
        "rollout.redundant_samples=1", "rollout.cap.medians=1.5", "rollout.cap.then=mask",
        "rollout.oversample=1.5", "rollout.overtaken=carry_over", "rollout.max_staleness=1",
        "rollout.max_rows=8", "rollout.engine=simulated", "rollout.simulated.length_median=2",
        "rollout.simulated.tokens_per_second=40", "publish.probe_tolerance=1000",
        "environment.groups_per_call=1", "evaluate=null",
    )  # fmt: skip
    result = runs.manta("train", runs.TINY, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "tiny"
    runs.check_history(run_dir, STEPS)
    entries = [e for e in read_ledger(run_dir / "ledger.jsonl") if e.stage == "rl"]
    assert {e.outcome for e in entries} == {"trained"}, "nothing is made anew"
    lines = [line for line in runs.metrics(run_dir) if line["stage"] == "rl"]
    assert max(line["staleness/max"] for line in lines) == 1.0
    assert all(line["samples"] == 8 * 4 for line in lines)
    assert all(line["length/cut_off_share"] == 0.2 for line in lines)
    assert all(line["length/cut_off_mean"] >= 0 for line in lines)
    assert all(1 <= line["rollout/cap_tokens"] <= 4 for line in lines)
    masked = [(line["length/truncated_share"], line["learner/rows"]) for line in lines]
    assert any(share > 0 for share, _ in masked)
    assert all(rows == round((1 - share) * 32) for share, rows in masked)
