"""The actors of a job as the control store of Ray knows them, also those of Ray Train."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray._private import state  # the public one asks the dashboard, which a local Ray does without


@dataclass(frozen=True, slots=True)
class JobActor:
    kind: str
    pid: int
    node: str


def living(job: ray.JobID) -> list[JobActor]:
    """The actors of `job` that are not dead. Detached ones of Ray Train look after themselves."""
    return [
        JobActor(actor["ActorClassName"], actor["Pid"], actor["Address"]["NodeID"])
        for actor in state.actors(job_id=job).values()
        if actor["State"] != "DEAD" and not actor["IsDetached"]
    ]
