"""The actors of a life of the driver that is over: all of them are gone before the next one builds.

Ray ends the actors of a driver that left it, in its own time. Owns the wait for that, and the end
of processes on this machine that cannot end themselves, since they were stopped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import ray

from manta.orchestrator.job_actors import CONTROLLER, killed_there, living, this_job
from manta.orchestrator.learner_fit import THREAD

_SECONDS = 30.0
_LOOK_SECONDS = 0.05


class PastLife:
    """Take it while the life is connected to Ray."""

    def __init__(self) -> None:
        self._job = this_job()
        here = ray.get_runtime_context().get_node_id()
        self._actors = [actor for actor in living(self._job) if actor.pid]
        self._pids = [actor.pid for actor in self._actors if actor.node == here]

    def end_learner(self, seconds: float = _SECONDS) -> None:
        """Before the life leaves Ray: until no thread of it waits for Ray Train any more. One that
        called a Ray that is shut down would end this process, at once and without a word."""
        controllers = [each for each in self._actors if each.kind == CONTROLLER]
        killing = [killed_there(each) for each in controllers]
        if killing:
            ray.wait(killing, num_returns=len(killing), timeout=seconds)
        for thread in threading.enumerate():
            if thread.name == THREAD:
                thread.join(seconds)

    def await_end_of_processes(self, seconds: float = _SECONDS) -> None:
        """After the life left a Ray of its own: until its processes have ended; those that have not
        after `seconds` are killed."""
        deadline = time.monotonic() + seconds
        while left := [pid for pid in self._pids if _is_worker(pid)]:
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)

    def await_end_of_actors(self, seconds: float = _SECONDS) -> None:
        """After the next life has joined the same cluster: until no actor of the last one lives.

        Raises TimeoutError, with their names, where some still do after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while left := living(self._job):
            if time.monotonic() > deadline:
                names = ", ".join(sorted(actor.kind for actor in left))
                raise TimeoutError(
                    f"actors of the life before still run after {seconds:g} s: {names}. Stop them "
                    "(or their nodes), then start the run again"
                )
            time.sleep(_LOOK_SECONDS)


def _is_worker(pid: int) -> bool:
    """Is that process (still) a worker of Ray?"""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False
