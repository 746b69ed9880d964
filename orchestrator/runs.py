"""`manta runs`: the runs that were submitted to a cluster, as its job server knows them.

Owns what is said of a run, from the job server and, where it can be read from here, from the run
directory. Never shows a job's runtime environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manta.orchestrator import status
from manta.orchestrator.display import read_step_line
from manta.orchestrator.job_address import add_argument, address_of, prepare_token
from manta.orchestrator.metrics import ACCURACY, REWARD
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.submit import RUN_DIR, RUN_NAME, STAGES, VARIABLES
from manta.orchestrator.summary import duration

if TYPE_CHECKING:
    from manta.orchestrator.job_server import Job, JobServer

POLL_SECONDS = 0.5
SAY_SECONDS = 30.0
"""How often a command that waits says what for."""
_WORDS = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "finished",
    "FAILED": "failed",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: its stage and that stage's steps, or the run's step alone."""

    stage: str
    step: int
    of: int | None

    def __str__(self) -> str:
        return f"{self.step}" if self.of is None else f"{self.step}/{self.of}"


def runs(chosen: argparse.Namespace) -> int:
    """Does what `manta runs` was asked for; the exit code. Raises ValueError."""
    address = address_of(chosen.address)
    prepare_token()
    from manta.orchestrator.job_server import JobServer

    server = JobServer(address)
    if chosen.action == "list":
        for line in listed(server):
            print(line)
        return 0
    job = find(server, chosen.run)
    if chosen.action == "status":
        print("\n".join(described(server, job)))
        return 0
    if chosen.action == "logs":
        if chosen.follow:
            return follow_to_end(server, job.id)
        sys.stdout.write(server.logs(job.id))
        return 0
    return stop(server, job, chosen.now)


def add_arguments(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, told in (
        ("list", "the runs that were submitted, the newest first"),
        ("status", "how far a run is, and what it has come to"),
        ("logs", "what a run printed"),
        ("stop", "save at the end of the step, and stop; submitting again goes on from there"),
    ):
        action = actions.add_parser(name, help=told, description=told)
        if name != "list":
            action.add_argument("run", metavar="RUN", help="its id, or its name for the newest one")
        if name == "logs":
            action.add_argument("-f", "--follow", action="store_true", help="until the run ends")
        if name == "stop":
            action.add_argument(
                "--now", action="store_true", help="at once: what was not saved is made again"
            )
        add_argument(action)


def find(server: JobServer, name: str) -> Job:
    """The run with that id, else the newest of that name. Raises ValueError."""
    jobs = [job for job in server.jobs() if RUN_NAME in job.metadata]
    for job in jobs:
        if job.id == name:
            return job
    for job in jobs:
        if job.metadata[RUN_NAME] == name:
            return job
    known = ", ".join(job.id for job in jobs[:5]) or "none"
    raise ValueError(f"no run '{name}' was submitted to {server.address}; newest: {known}")


def listed(server: JobServer) -> Iterator[str]:
    """A table of runs; jobs that are none of Manta's are left out."""
    rows = [("RUN", "STATUS", "STAGE", "STEP", "SINCE")]
    seen: set[Path] = set()
    for job in server.jobs():
        if RUN_NAME not in job.metadata:
            continue
        root = _directory(job).root
        # A finished run's log may be long: what it came to is in its directory, which a later job
        # may have gone on with
        progress = None if job.has_ended else _printed(server, job)
        if progress is None and root not in seen:
            progress = _written(job)
        seen.add(root)
        stage, step = (progress.stage, str(progress)) if progress else ("-", "-")
        rows.append((job.id, state(job), stage, step, _since(job)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def described(server: JobServer, job: Job) -> Iterator[str]:
    """A run in lines of words."""
    yield f"{job.id}: {state(job)}, since {_since(job)}"
    progress = _printed(server, job) or _written(job)
    if progress is not None:
        yield f"stage {progress.stage}, step {progress}"
    yield f"stages: {job.metadata.get(STAGES, '')}"
    if job.metadata.get(VARIABLES):
        yield f"environment variables: {job.metadata[VARIABLES]}"
    directory = _directory(job)
    readable = "" if os.access(directory.root, os.R_OK) else " (not readable from here)"
    yield f"run directory: {directory.root}{readable}"
    if not job.has_ended:
        yield from held_up(directory)
    yield from _figures(directory)
    if job.status == "FAILED" and job.message:
        yield "ended with:"
        yield from (f"  {line}" for line in job.message.strip().splitlines()[-5:])


def held_up(directory: RunDirectory) -> Iterator[str]:
    """What a living run lacks, where that can be read from here. `manta doctor` says more."""
    try:
        found = status.read(directory.status)
    except ValueError:
        return
    unplaced = [worker.name for worker in found.workers if worker.state == "waiting"]
    if unplaced:
        yield f"waiting for a node: {', '.join(unplaced)}"
    silent = [worker.name for worker in found.workers if worker.state in ("silent", "frozen")]
    if silent:
        yield f"without a sign of life: {', '.join(silent)}"


def state(job: Job) -> str:
    """A run that was stopped and saved ends well for Ray; its summary says what it was."""
    summary = _summary(_directory(job)) if job.status == "SUCCEEDED" else {}
    return str(summary.get("state", _WORDS[job.status]))


def follow_to_end(server: JobServer, id: str) -> int:
    """Prints what the run prints until it ends; 1 if it failed, else 0, as of `manta train`. Ctrl-C
    ends this command, not the run."""
    try:
        asyncio.run(_follow(server, id))
        job = _ended(server, id)
    except KeyboardInterrupt:
        print(f"\n{id} goes on: manta runs stop {id} --address {server.address}", file=sys.stderr)
        return 0
    print(f"{id}: {state(job)}")
    return 1 if job.status == "FAILED" else 0


async def _follow(server: JobServer, id: str) -> None:
    async with aclosing(server.follow(id)) as texts:  # type: ignore[type-var]
        async for text in texts:
            sys.stdout.write(text)
            sys.stdout.flush()


def stop(server: JobServer, job: Job, now: bool) -> int:
    """Asks the driver to save and stop, or with `now` ends it; waits until it has ended."""
    if job.has_ended:
        print(f"{job.id} has ended: {state(job)}")
        return 0
    server.stop(job.id)
    if now:
        told = f"{job.id}: ending it at once; what was not saved is made again on resume"
        print(told, flush=True)
        _end(server, job)
    else:
        progress = _printed(server, job)
        where = f"step {progress} of {progress.stage}" if progress else "start-up"
        print(
            f"{job.id}: asked to stop (SIGTERM). It saves at the end of the step, and this waits "
            f"for that (last seen: {where}). Ctrl-C leaves it to stop by itself; "
            f"`manta runs stop {job.id} --now` ends it at once",
            flush=True,
        )
    try:
        ended = _ended(server, job.id, says=True)
    except KeyboardInterrupt:
        print(f"\n{job.id} is still stopping", file=sys.stderr)
        return 0
    print(f"{job.id}: {state(ended)}")
    return 0


def _end(server: JobServer, job: Job) -> None:
    """Kills the driver where it runs, by a job of its own: Ray's stop has no second signal."""
    if job.driver is None:
        return
    pid, node = job.driver
    id = f"{job.id}-end"
    # A second SIGTERM has the driver leave without saving; it gets 10 s for that
    command = (
        f"kill -TERM {pid}; i=0; "
        f"while kill -0 {pid} && [ $i -lt 50 ]; do sleep 0.2; i=$((i + 1)); done; "
        f"kill -KILL {pid} || true"
    )
    server.submit(command, id, {}, {}, at=node)
    _ended(server, id)
    server.delete(id)


def _ended(server: JobServer, id: str, says: bool = False) -> Job:
    said = time.monotonic()
    while not (job := server.job(id)).has_ended:
        time.sleep(POLL_SECONDS)
        if says and time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            progress = _printed(server, job)
            where = f"step {progress} of {progress.stage} is done" if progress else "no step yet"
            print(f"waiting for {id} to save ({where})", flush=True)
    return job


def _directory(job: Job) -> RunDirectory:
    return RunDirectory(Path(job.metadata.get(RUN_DIR, "")))


def _printed(server: JobServer, job: Job) -> Progress | None:
    """From the last step that the run printed."""
    for line in reversed(server.logs(job.id).splitlines()):
        found = read_step_line(line)
        if found is not None:
            return Progress(*found)
    return None


def _written(job: Job) -> Progress | None:
    """From the last whole line of the run's metrics."""
    lines = _metrics(_directory(job))
    if not lines:
        return None
    last = lines[-1]
    return Progress(str(last["stage"]), int(str(last["step"])), None)


def _metrics(directory: RunDirectory) -> Sequence[dict[str, object]]:
    """The lines that can be read from here."""
    lines = [_mapping(line) for line in _text(directory.metrics).split("\n")[:-1]]
    return [line for line in lines if line.keys() >= {"stage", "step"}]


def _summary(directory: RunDirectory) -> dict[str, object]:
    """Empty where there is none, or none that can be read from here."""
    return _mapping(_text(directory.summary))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mapping(text: str) -> dict[str, object]:
    """Empty where it is none: one damaged file must not hide all other runs."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _figures(directory: RunDirectory) -> Iterator[str]:
    """The newest of what people look at first, and the summary of a run that has one."""
    lines = _metrics(directory)
    for name in (REWARD, ACCURACY):
        found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if found:
            step, value = found[-1]
            yield f"{name}: {value:.4g} at step {step}"
    summary = _summary(directory)
    if isinstance(seconds := summary.get("seconds"), int | float):
        yield f"summary: {summary.get('state')} after {duration(seconds)}"
    if summary.get("error"):
        yield f"error: {summary['error']}"


def _since(job: Job) -> str:
    at = job.end if job.has_ended else job.start
    if at is None:
        return "-"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}"
