"""The actors of a life of the driver that is over: all of them are gone before the next one builds.

Ray ends the actors of a driver that left it, in its own time. Owns the wait for that, the end of
processes on this machine that cannot end themselves, since they were stopped, and what is told of
those that nobody can end.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import ray

from manta.orchestrator.job_actors import CONTROLLER, killed_there, living, this_job
from manta.orchestrator.learner_fit import THREAD

_SECONDS = 30.0
_KILLED_SECONDS = 10.0
"""For a process to be gone once it was killed: one that waits for a disk ends with that wait."""
_LOOK_SECONDS = 0.05


class PastLife:
    """Take it while the life is connected to Ray."""

    def __init__(self, has_own_ray: bool) -> None:
        """`has_own_ray`: its Ray ends with it, and with that all its processes, which are here."""
        self._job, self._has_own_ray = this_job(), has_own_ray
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
        after `seconds` are killed. Raises TimeoutError where some outlive that."""
        if self._has_own_ray:
            await_end(self._pids, seconds)

    def await_end_of_actors(self, seconds: float = _SECONDS) -> None:
        """After the next life has joined the same cluster: until no actor of the last one lives.

        Raises TimeoutError, with their names, where some still do after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not self._has_own_ray and (left := living(self._job)):
            if time.monotonic() > deadline:
                names = sorted(f"{each.kind} (process {each.pid} on {each.node})" for each in left)
                raise TimeoutError(
                    f"actors of the life before still run after {seconds:g} s: {', '.join(names)}. "
                    "Stop them (or their nodes), then start the run again"
                )
            time.sleep(_LOOK_SECONDS)


def await_end(
    pids: Sequence[int],
    seconds: float,
    kill: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL),
    killed_seconds: float = _KILLED_SECONDS,
) -> None:
    """Until none of `pids` is a worker of Ray any more; `kill`s those that still are after
    `seconds`. Raises TimeoutError where some still are `killed_seconds` later."""
    deadline, are_killed = time.monotonic() + seconds, False
    while left := [pid for pid in pids if _is_worker(pid)]:
        if time.monotonic() > deadline:
            if are_killed:
                raise TimeoutError(_stay(left, killed_seconds))
            deadline, are_killed = time.monotonic() + killed_seconds, True
            for pid in left:
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    kill(pid)
        time.sleep(_LOOK_SECONDS)


def _stay(pids: Sequence[int], seconds: float) -> str:
    names = ", ".join(f"{_name(pid)} (process {pid})" for pid in pids)
    return (
        f"workers of the life before still run {seconds:g} s after they were killed: {names}. "
        "They wait for a disk or a network file system (state D in ps): see that it answers, or "
        "restart the machine, then start the run again"
    )


def _name(pid: int) -> str:
    """What the worker calls itself."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    return "ray"


def _is_worker(pid: int) -> bool:
    """Is that process (still) a worker of Ray?"""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False
