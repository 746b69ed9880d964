"""Signs of life of Ray Train's controllers, which nobody would miss before they are needed: to
start fallen ranks anew, and to end.

Nothing in them can be asked. Ray Train puts them on the driver's machine, so that their processes
are looked at from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ray

from manta.actors.processes import Known, figures, process_here
from manta.actors.vitals import Identity, LifeSign
from manta.orchestrator.job_actors import CONTROLLER, living, this_job


class ControllerSigns:
    """`is_needed`: is there a learner group that one belongs to?"""

    def __init__(self, is_needed: Callable[[], bool]) -> None:
        self._is_needed = is_needed
        self._known: list[Identity] = []

    async def heard(self) -> list[tuple[Identity, LifeSign]]:
        """Of each that lives. Ray is asked for them only while none is known."""
        if not self._known and self._is_needed():
            self._known = await asyncio.to_thread(_identities)
        found = [(identity, figures(identity.process)) for identity in self._known]
        signs = [(who, LifeSign(0.0, "", told)) for who, told in found if told is not None]
        self._known = [identity for identity, _ in signs]
        return signs


def _identities() -> list[Identity]:
    try:
        actors = [each for each in living(this_job()) if each.kind == CONTROLLER and each.pid]
    except ray.exceptions.RayError:
        return []  # Ray's control store does not answer: whoever needs it says so
    found: list[tuple[Known | None, str]] = [(process_here(a.pid), a.node) for a in actors]
    return [Identity(process, node, "", -1) for process, node in found if process is not None]
