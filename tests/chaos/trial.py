"""One run under one schedule of faults, and whether it kept what Manta promises."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manta.orchestrator.run_file import load
from tests.chaos.faults import DRIVER, Fault
from tests.chaos.town import Town
from tests.e2e import runs

TRIAL_SECONDS = 240.0
MOST_LIVES = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """`hits`: what was done, in words. `steps`: how many the run makes."""

    directory: Path
    steps: int
    hits: tuple[str, ...]
    seconds: float
    output: str


class TrialFailed(AssertionError):
    """The run did not come to its end."""


def run_trial(
    town: Town, run_file: Path, runs_dir: Path, faults: Sequence[Fault], *overrides: str
) -> Trial:
    """Runs `run_file` under `faults`, starting its driver anew where they kill it.

    Raises TrialFailed where it does not finish, with what was done to it and what it said.
    """
    started = time.monotonic()
    directory = runs_dir / load(run_file).run.name
    hits: list[str] = []
    waiting = list(faults)
    for _ in range(MOST_LIVES):
        log = runs_dir / f"life-{len(list(runs_dir.glob('life-*')))}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                runs.command("train", run_file, runs_dir, *overrides),
                cwd=runs.ROOT,
                env=town.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                _follow(town, process, directory, waiting, hits, started)
                code = process.wait(max(1.0, TRIAL_SECONDS - (time.monotonic() - started)))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise TrialFailed(_told(f"not done after {TRIAL_SECONDS:g} s", hits, log)) from None
        if code == 0:
            seconds = time.monotonic() - started
            return Trial(directory, runs.last_step(run_file), tuple(hits), seconds, log.read_text())
        if code != -9:
            raise TrialFailed(_told(f"exit code {code}", hits, log))
    raise TrialFailed(f"the driver was killed {MOST_LIVES} times: {hits}")


def check(trial: Trial, town: Town, undisturbed: Trial | None = None) -> None:
    """The ledger is whole and agrees with what the ranks wrote; nothing is left of the run. A
    deterministic one ends with the weights of the `undisturbed` one, and on the same samples."""
    trained = runs.check_history(trial.directory, trial.steps)
    assert runs.summary(trial.directory)["state"] == "finished"
    if undisturbed is not None:
        expected = runs.check_history(undisturbed.directory, trial.steps)
        assert [e.content_hash for e in trained] == [e.content_hash for e in expected]
        ends = [runs.weights(each.directory, trial.steps) for each in (trial, undisturbed)]
        assert ends[0] == ends[1], f"{trial.hits}: other weights than without faults"
    assert not town.left_over(), f"{trial.hits}: these live on: {town.left_over()}"


def _follow(
    town: Town,
    process: subprocess.Popen[bytes],
    directory: Path,
    waiting: list[Fault],
    hits: list[str],
    started: float,
) -> None:
    """Makes the faults happen at their steps, until the driver is gone."""
    while waiting and process.poll() is None:
        if time.monotonic() - started > TRIAL_SECONDS:
            return
        fault = waiting[0]
        if fault.step > 0 and not any(
            line["step"] >= fault.step for line in runs.metrics(directory)
        ):
            time.sleep(0.02)
            continue
        time.sleep(fault.delay_seconds)
        waiting.pop(0)
        if fault.role == DRIVER:
            process.kill()
            hits.append(str(fault))
        else:
            hits.append(town.strike(fault))


def _told(problem: str, hits: Sequence[str], log: Path) -> str:
    done = "".join(f"\n  {hit}" for hit in hits)
    return f"{problem}, after:{done}\nthe run's last words:\n{log.read_text()[-4000:]}"
