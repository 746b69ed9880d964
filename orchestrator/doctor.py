"""`manta doctor RUN_DIR`: what a run waits for, for how long, and who holds it up.

Owns the diagnosis, from what the run directory says and what its machines say, and the words for
it. How machines are reached is `manta.orchestrator.doctor_visit`'s. Prints no environment, no
arguments and no configuration; log lines come without what looks like a secret.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from manta.actors.examination import Examined
from manta.actors.processes import Known, own_state
from manta.actors.vitals import Identity
from manta.orchestrator import status
from manta.orchestrator.health import WorkerReport
from manta.orchestrator.metrics import read_metrics
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.status import ENDED, Status, WaitStatus
from manta.orchestrator.summary import duration

STEP = "time/step"
STANDS_FACTOR = 5.0
"""Times the usual step: steps of three times the usual happen, see `manta.orchestrator.alarms`."""
STANDS_SECONDS = 30.0
"""Nothing stands still that has not for so long."""
STALE_SECONDS = 15.0
"""A driver that writes its status every two seconds and has not for so long is stuck itself."""
_STEPS = 20

Visit: TypeAlias = Callable[[Status, Sequence[Identity]], tuple[Mapping[Known, Examined], str]]
"""Looks at processes, as far as they can be reached; what could not be, in a sentence."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """A worker that holds the run up, why it is thought to, and what its machine says of it."""

    worker: WorkerReport
    why: str
    examined: Examined | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`driver` is in words; `usual_seconds` of a step, None before there are any;
    `standing_seconds` since the last step ended. `advice`: what to do, most urgent first."""

    status: Status
    driver: str
    is_driver_alive: bool
    is_well: bool
    verdict: str
    usual_seconds: float | None
    standing_seconds: float
    waits: tuple[tuple[WaitStatus, float], ...]
    culprits: tuple[Culprit, ...]
    advice: tuple[str, ...]
    unreached: str


def diagnose(run_dir: Path, visit: Visit) -> Diagnosis:
    """Raises ValueError where `run_dir` is no run directory, or its status cannot be read."""
    directory = RunDirectory(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is no folder: name the directory of a run (run.dir/run.name)")
    if not directory.config.exists() and not directory.status.exists():
        raise ValueError(
            f"{run_dir} is no run directory: it has neither config.yaml nor status.json"
        )
    found = status.read(directory.status)
    now = time.time()
    is_alive, driver = _driver(directory, found, now)
    usual, last = _pace(directory, found)
    standing = max(0.0, found.seconds + (now - found.written if is_alive else 0.0) - last)
    if found.state in ENDED:
        return _ended(directory, found, driver, usual)
    suspects = _suspects(found, is_alive)
    examined, unreached = visit(found, [each.identity for each, _ in suspects if each.identity])
    culprits = tuple(
        Culprit(worker, why, examined.get(worker.identity.process) if worker.identity else None)
        for worker, why in suspects
    )
    waits = tuple((each, now - each.since) for each in found.waits)
    stands = (
        usual is not None and standing > max(STANDS_SECONDS, STANDS_FACTOR * usual)
    ) or now - found.written > STALE_SECONDS
    sick = [each for each in culprits if each.why]
    return Diagnosis(
        status=found,
        driver=driver,
        is_driver_alive=is_alive,
        is_well=is_alive and not stands and not sick,
        verdict=_verdict(found, is_alive, stands, sick, waits, now),
        usual_seconds=usual,
        standing_seconds=standing,
        waits=waits if is_alive else (),
        culprits=culprits if sick or stands or not is_alive else (),
        advice=(*_advice(directory, is_alive, stands, sick, waits), *_room(found, is_alive)),
        unreached=unreached,
    )


def _driver(directory: RunDirectory, found: Status, now: float) -> tuple[bool, str]:
    """Does it live, and how that is known. On its own machine the lock tells beyond doubt."""
    driver, ago = found.driver, duration(max(0.0, now - found.written))
    where = f"process {driver.pid} on {driver.host}"
    if not driver.is_here:
        is_alive = now - found.written < STALE_SECONDS
        told = "lives" if is_alive else "gives no sign (look on its machine whether it lives)"
        return is_alive, f"{where} {told}; last sign {ago} ago"
    process = own_state(driver)
    if process is None or not _is_locked(directory):
        return False, f"{where} is gone; last sign {ago} ago"
    state, is_stopped = process
    if is_stopped:
        return True, f"{where} is {state}; last sign {ago} ago"
    return True, f"{where} lives; last sign {ago} ago"


def _is_locked(directory: RunDirectory) -> bool:
    """Does a driver on this machine hold the directory?"""
    if not directory.lock_file.exists():
        return False
    with directory.lock_file.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _pace(directory: RunDirectory, found: Status) -> tuple[float | None, float]:
    """Seconds of a usual step of the stage, and when the last step ended on the run's clock."""
    if not directory.metrics.exists():
        return None, 0.0
    lines = [line for line in read_metrics(directory.metrics) if STEP in line.values]
    own = [line.values[STEP] for line in lines if line.stage == found.stage][-_STEPS:]
    usual = float(np.median(own)) if own else None
    return usual, lines[-1].seconds if lines else 0.0


def _suspects(found: Status, is_alive: bool) -> list[tuple[WorkerReport, str]]:
    """Those that give no sign or stand, with why; where all are well, those that are at work."""
    sick = []
    for worker in found.workers:
        silent = duration(worker.silent_seconds)
        told = {
            "silent": f"no sign of life for {silent}",
            "frozen": f"no sign of life for {silent}; the watchdog has killed it",
            "busy": f"its event loop stands in {worker.doing}",
            "starting": f"has been starting for {silent}",
        }.get(worker.state)
        if told and (worker.state != "starting" or worker.silent_seconds > STANDS_SECONDS):
            sick.append((worker, told))
    if sick or not is_alive:
        return sick
    return [(worker, "") for worker in found.workers if worker.doing and worker.state != "waiting"]


def _verdict(
    found: Status,
    is_alive: bool,
    stands: bool,
    sick: Sequence[Culprit],
    waits: Sequence[tuple[WaitStatus, float]],
    now: float,
) -> str:
    if not is_alive:
        return f"The driver is dead: nothing runs, and what was made up to step {found.step} waits."
    if sick:
        names = ", ".join(each.worker.name for each in sick)
        waited = f" The driver waits for {waits[-1][0].name}." if waits else ""
        return f"Held up by {names}.{waited}"
    if now - found.written > STALE_SECONDS:
        return "The driver itself stands still: it writes no status any more."
    unplaced = [each.name for each in found.workers if each.state == "waiting"]
    added = f" Waiting for a node: {', '.join(unplaced)}." if unplaced else ""
    if stands:
        return f"No step ends, although every worker gives signs of life.{added}"
    return ("It is well." if found.state == "running" else f"It is {found.state}.") + added


def _advice(
    directory: RunDirectory,
    is_alive: bool,
    stands: bool,
    sick: Sequence[Culprit],
    waits: Sequence[tuple[WaitStatus, float]],
) -> list[str]:
    if not is_alive:
        return [f"go on from its newest checkpoint: {resume_command(directory)}"]
    advice = []
    for each in sick:
        process = each.worker.identity.process if each.worker.identity else None
        if each.worker.state == "starting":
            advice.append(f"{each.worker.name}: does its log say what its constructor does?")
        elif process is not None and each.examined and "stopped" in each.examined.state:
            advice.append(
                f"{each.worker.name}: kill -CONT {process.pid} on {process.host} lets it go on; "
                "the watchdog kills it after health.frozen_after_seconds otherwise"
            )
        elif process is not None and each.worker.state != "busy":
            advice.append(
                f"{each.worker.name}: the watchdog kills it after health.frozen_after_seconds; "
                f"kill -9 {process.pid} on {process.host} is quicker"
            )
    if (stands or sick) and waits:
        wait, waited = waits[-1]
        left = max(0.0, wait.deadline_seconds - waited)
        advice.append(
            f"if nothing changes, the run begins anew or ends by itself in {duration(left)}"
        )
    return advice


def _room(found: Status, is_alive: bool) -> list[str]:
    """For workers that wait for a node for longer than one takes to come up here and there."""
    unplaced = [
        each
        for each in found.workers
        if is_alive and each.state == "waiting" and each.silent_seconds > STANDS_SECONDS
    ]
    return [
        f"{each.name} {each.doing} for {duration(each.silent_seconds)}: ray status tells whether "
        "one is on its way, and what the autoscaler may still start"
        for each in unplaced
    ]


def _ended(directory: RunDirectory, found: Status, driver: str, usual: float | None) -> Diagnosis:
    told = {
        "finished": "It is finished.",
        "stopped": f"It was stopped at step {found.step}, and saved.",
        "failed": f"It failed at step {found.step}: {found.error}",
    }[found.state]
    resume = () if found.state == "finished" else (f"go on: {resume_command(directory)}",)
    return Diagnosis(
        found, driver, False, found.state != "failed", told, usual, 0.0, (), (), resume, ""
    )


def resume_command(directory: RunDirectory) -> str:
    root = directory.root.absolute()
    return f"manta train {root / 'config.yaml'} run.dir={root.parent}"
