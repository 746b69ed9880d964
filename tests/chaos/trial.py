"""One run under one schedule of faults, and whether it kept what Manta promises."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manta.orchestrator.run_file import load
from tests.chaos.faults import DRIVER, Fault, Hit
from tests.chaos.town import Town
from tests.e2e import runs

TRIAL_SECONDS = 240.0
MOST_LIVES = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """`hits`: what became of each planned fault. `steps`: how many the run makes."""

    directory: Path
    steps: int
    hits: tuple[Hit, ...]
    seconds: float
    output: str


class TrialFailed(AssertionError):
    """The run did not come to its end; `hits` as in `Trial`."""

    def __init__(self, problem: str, hits: Sequence[Hit], log: Path) -> None:
        done = "".join(f"\n  {hit}" for hit in hits)
        last = log.read_text()[-4000:]
        super().__init__(f"{problem}, after:{done}\nthe run's last words:\n{last}")
        self.hits = tuple(hits)


def run_trial(
    town: Town, run_file: Path, runs_dir: Path, faults: Sequence[Fault], *overrides: str
) -> Trial:
    """Runs `run_file` under `faults`, starting its driver anew where they kill it.

    Raises TrialFailed where it does not finish, with what was done to it and what it said.
    """
    started = time.monotonic()
    directory = runs_dir / load(run_file).run.name
    hits: list[Hit] = []
    waiting = list(faults)
    town.begin()
    for life in range(MOST_LIVES):
        log = runs_dir / f"life-{life}.log"
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
        except TimeoutError as error:
            raise TrialFailed(str(error), [*hits, *_missed(waiting)], log) from None
        finally:
            process.kill()
            process.wait()
        if process.returncode != -signal.SIGKILL:
            break
    hits += _missed(waiting)
    if process.returncode == -signal.SIGKILL:
        raise TrialFailed(f"the driver was killed {MOST_LIVES} times", hits, log)
    if process.returncode != 0:
        raise TrialFailed(f"exit code {process.returncode}", hits, log)
    seconds = time.monotonic() - started
    return Trial(directory, runs.last_step(run_file), tuple(hits), seconds, log.read_text())


def check(trial: Trial, town: Town, undisturbed: Trial | None = None) -> None:
    """The ledger is whole and agrees with what the ranks wrote; nothing is left of the run. A
    deterministic one ends with the weights of the `undisturbed` one, and on the same samples."""
    trained = runs.check_history(trial.directory, trial.steps)
    assert runs.summary(trial.directory)["state"] == "finished"
    if undisturbed is not None:
        expected = runs.check_history(undisturbed.directory, trial.steps)
        assert [e.content_hash for e in trained] == [e.content_hash for e in expected]
        ends = [runs.weights(each.directory, trial.steps) for each in (trial, undisturbed)]
        assert ends[0] == ends[1], f"{_listed(trial.hits)}: other weights than without faults"
    left = town.left_over()
    assert not left, f"{_listed(trial.hits)}: these live on: {', '.join(left)}"


def _follow(
    town: Town,
    process: subprocess.Popen[bytes],
    directory: Path,
    waiting: list[Fault],
    hits: list[Hit],
    started: float,
) -> None:
    """Makes the faults happen at their steps, until the driver is gone. Raises TimeoutError where
    it is not for too long."""
    while process.poll() is None:
        if time.monotonic() - started > TRIAL_SECONDS:
            raise TimeoutError(f"not done after {TRIAL_SECONDS:g} s")
        town.look()
        if not waiting or not _has_reached(directory, waiting[0].step):
            time.sleep(0.02)
            continue
        time.sleep(waiting[0].delay_seconds)
        if process.poll() is None:
            fault = waiting.pop(0)
            is_driver = fault.role == DRIVER
            hits.append(kill_driver(process, fault) if is_driver else town.strike(fault))


def _has_reached(directory: Path, step: int) -> bool:
    return step == 0 or any(line["step"] >= step for line in runs.metrics(directory))


def kill_driver(process: subprocess.Popen[bytes], fault: Fault) -> Hit:
    process.kill()
    if process.wait() == -signal.SIGKILL:
        return Hit(fault, f"process {process.pid}", is_delivered=True)
    return Hit(fault, "the driver had ended", is_delivered=False)


def _missed(waiting: Sequence[Fault]) -> list[Hit]:
    return [Hit(fault, "the run had ended", is_delivered=False) for fault in waiting]


def _listed(hits: Sequence[Hit]) -> str:
    return "; ".join(map(str, hits))
