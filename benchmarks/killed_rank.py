"""The processes of a run on this machine, found by their parents, and what a killed one costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from manta.orchestrator.metrics import LEARNER_FELL, read_metrics

RANKS = "RayTrainWorker"
"""What learner ranks are called as actors."""
_LOOK_SECONDS = 0.02


def last_step(run_dir: Path) -> int:
    """The newest step that the run has done; 0 before the first."""
    path = run_dir / "metrics.jsonl"
    return max((line.step for line in read_metrics(path)), default=0) if path.exists() else 0


def workers(driver: int, kind: str) -> list[int]:
    """The process ids of the actors of class `kind` below the driver, on a Ray of its own."""
    found = []
    for each in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if " ".join(each.cmdline()).startswith(f"ray::{kind}"):
                found.append(each.pid)
    return sorted(found)


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    """Raises RuntimeError where the run ends, or stands still, before it has done `step`."""
    wait(process, lambda: last_step(run_dir) >= step, 120)


def wait(process: subprocess.Popen[str], until: Callable[[], bool], seconds: float) -> None:
    """Raises RuntimeError where the run ends, or `seconds` pass, first."""
    deadline = time.monotonic() + seconds
    while not until():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the run ended, or stood still")
        time.sleep(_LOOK_SECONDS)


def seconds_to_a_new_step(process: subprocess.Popen[str], run_dir: Path, rank: int) -> float:
    """Kills learner rank number `rank`; from then to the end of the first step that no group had
    finished, as the driver notes it."""
    before = len(falls(run_dir))
    os.kill(workers(process.pid, RANKS)[rank], signal.SIGKILL)
    started = time.monotonic()
    wait(process, lambda: len(falls(run_dir)) > before, 120)
    wait_for_step(process, run_dir, int(falls(run_dir)[-1]["newest finished step"]) + 1)
    return time.monotonic() - started


def falls(run_dir: Path) -> list[dict[str, str]]:
    """What the events say of every fall of the learner group."""
    lines = (run_dir / "events.jsonl").read_text().split("\n")[:-1]
    events = [json.loads(line) for line in lines]
    return [event["fields"] for event in events if event["name"] == LEARNER_FELL]
