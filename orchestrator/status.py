"""`status.json` in the run directory: where a run stands right now, for whoever looks from outside.

Owns the file: its fields, how it is replaced (a reader sees the old or the new, never half), and
how it is read. Costs no wait for the disk: after a power cut it may be the one before.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from manta.actors.processes import Known
from manta.actors.vitals import Identity
from manta.orchestrator.health import WorkerReport

FORMAT = 1

State = Literal["starting", "running", "stopping", "finished", "stopped", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class WaitStatus:
    """A wait in progress; `since` in seconds since the epoch."""

    name: str
    since: float
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class RayStatus:
    """How to reach the run's cluster. `address` is that of its control store; `job` is empty where
    the run was not submitted as one."""

    address: str
    session: str
    job: str


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of a run. Times are in seconds since the epoch, `seconds` those of the run's own
    clock (as in `metrics.jsonl`). `incarnation` counts the starts of the driver, and of the learner
    group within one, from 0. `departed` are workers that have died or were let go."""

    written: float
    state: State
    run: str
    stage: str
    stage_step: int
    stage_steps: int
    step: int
    seconds: float
    incarnation: int
    driver: Known
    ray: RayStatus
    waits: tuple[WaitStatus, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
    departed: tuple[WorkerReport, ...] = ()
    error: str = ""
    format: int = field(default=FORMAT)


def write(path: Path, status: Status) -> None:
    """Raises OSError where it cannot be written; the file before stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(asdict(status)), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Status:
    """Raises ValueError saying what is wrong with the file, and what to do."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} does not exist: the run has not begun, or a version without it ran it"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version}, this version of manta reads {FORMAT}: use the version "
            "that runs it"
        )
    try:
        return _status(found)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); a living run replaces it") from error


def _status(found: dict[str, Any]) -> Status:
    fields = {each.name: found[each.name] for each in dataclasses.fields(Status)}
    fields["driver"] = Known(**found["driver"])
    fields["ray"] = RayStatus(**found["ray"])
    fields["waits"] = tuple(WaitStatus(**each) for each in found["waits"])
    fields["workers"] = tuple(_worker(each) for each in found["workers"])
    fields["departed"] = tuple(_worker(each) for each in found["departed"])
    return Status(**fields)


def _worker(found: dict[str, Any]) -> WorkerReport:
    identity = found["identity"]
    if identity is not None:
        identity = Identity(**{**identity, "process": Known(**identity["process"])})
    return WorkerReport(**{**found, "identity": identity})
