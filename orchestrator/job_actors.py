"""The actors of a job as the control store of Ray knows them, also those of Ray Train."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import state  # the public one asks the dashboard, which a local Ray does without
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

RANK, CONTROLLER = "RayTrainWorker", "TrainController"
"""Kinds of Ray Train's."""


@dataclass(frozen=True, slots=True)
class JobActor:
    kind: str
    pid: int
    node: str


def this_job() -> ray.JobID:
    """That of this driver."""
    return ray.JobID.from_hex(ray.get_runtime_context().get_job_id())


def living(job: ray.JobID) -> list[JobActor]:
    """The actors of `job` that are not dead. What Ray keeps for all jobs is detached."""
    return [
        JobActor(actor["ActorClassName"], actor["Pid"], actor["Address"]["NodeID"])
        for actor in state.actors(job_id=job).values()
        if actor["State"] != "DEAD" and not actor["IsDetached"]
    ]


def killed_there(actor: JobActor) -> ray.ObjectRef[None]:
    """A task on the actor's node that kills its process: there is no handle to end it by."""
    place = NodeAffinitySchedulingStrategy(actor.node, soft=False)
    killing = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=place)
    started: ray.ObjectRef[None] = killing.remote(actor.pid, actor.kind)
    return started


def _kill(pid: int, kind: str) -> None:
    # The number may be another process's by now
    name = Path(f"/proc/{pid}/cmdline")
    if name.exists() and name.read_bytes().startswith(f"ray::{kind}".encode()):
        os.kill(pid, signal.SIGKILL)
