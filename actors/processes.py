"""What the operating system says of a process and of its machine; how a process is ended for good.

Owns reading only what belongs to the caller's own user: no environment, no arguments. Who is worth
looking at is somebody else's business.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, OSError)
_END_SECONDS = 5.0

_STATES = {
    psutil.STATUS_STOPPED: "stopped (state T): something sent it SIGSTOP",
    psutil.STATUS_TRACING_STOP: "stopped (state t): a debugger holds it",
    psutil.STATUS_DISK_SLEEP: "waiting for a disk or a network file system (state D)",
    psutil.STATUS_ZOMBIE: "dead, not yet reaped (state Z)",
    psutil.STATUS_RUNNING: "computing (state R)",
    psutil.STATUS_SLEEPING: "sleeping (state S)",
}


@dataclass(frozen=True, slots=True)
class Known:
    """A process beyond doubt: numbers come again, a number with its start time does not. `born` is
    in seconds after its machine's start (where the system does not tell, since the epoch), since
    clocks are set."""

    host: str
    pid: int
    born: float

    @property
    def is_here(self) -> bool:
        """Is it one of this machine's?"""
        return self.host == socket.gethostname()


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Of a process and all that it started: bytes of memory now and at most (pages shared with
    others counted), processor seconds. `state` is in words; `is_stopped` also where one that it
    started is."""

    state: str
    is_stopped: bool
    cpu_seconds: float
    memory: int
    peak_memory: int


NOT_KNOWN = ProcessFigures("unknown", False, 0.0, 0, 0)
"""Where the system does not tell."""


@dataclass(frozen=True, slots=True)
class HostFigures:
    """Of a machine: shares of memory and of the disk below some folder that are in use, and bytes
    that are free there."""

    memory_share: float
    disk_share: float
    disk_free: int


@cache
def _own(pid: int) -> Known:
    return Known(socket.gethostname(), pid, _born(pid))


def this_process() -> Known:
    return _own(os.getpid())


def process_here(pid: int) -> Known | None:
    """That of this machine with the number `pid`; None where there is none."""
    with suppress(*_GONE):
        return Known(socket.gethostname(), pid, _born(pid))
    return None


def figures(process: Known) -> ProcessFigures | None:
    """None where it is gone, or another process has its number by now."""
    found = _found(process)
    if found is None:
        return None
    try:
        state = found.status()
        family = [found, *_descendants(found)]
    except _GONE:
        return None
    if state == psutil.STATUS_ZOMBIE:
        return None
    cpu = 0.0
    memory = peak = 0
    stopped = [state] if state == psutil.STATUS_STOPPED else []
    for each in family:
        with suppress(*_GONE):
            times = each.cpu_times()
            cpu += times.user + times.system
            held = each.memory_info().rss
            memory += held
            peak += max(held, _peak(each.pid))
            if each is not found and each.status() == psutil.STATUS_STOPPED:
                stopped.append(psutil.STATUS_STOPPED)
                state = f"its process {each.pid} is {_STATES[psutil.STATUS_STOPPED]}"
    return ProcessFigures(_STATES.get(state, state), bool(stopped), cpu, memory, peak)


def own_state(process: Known) -> tuple[str, bool] | None:
    """Its state in words, and whether it is stopped, whatever those that it started are; None where
    it is gone."""
    found = _found(process)
    with suppress(*_GONE):
        if found is not None and (state := found.status()) != psutil.STATUS_ZOMBIE:
            return _STATES.get(state, state), state == psutil.STATUS_STOPPED
    return None


def end(process: Known) -> bool:
    """Kills it and all that it started, stopped ones too; whether it is gone afterwards."""
    found = _found(process)
    if found is None:
        return True
    family = [found]
    with suppress(*_GONE):
        family = [*_descendants(found), found]
    for each in family:
        with suppress(*_GONE):
            each.kill()
    _, alive = psutil.wait_procs(family, timeout=_END_SECONDS)
    return found not in alive


def host_figures(folder: Path) -> HostFigures:
    """Of this machine, and of the disk that `folder` lies on."""
    disk = psutil.disk_usage(str(folder))
    return HostFigures(_memory_share(), disk.used / max(1, disk.used + disk.free), disk.free)


def _found(process: Known) -> psutil.Process | None:
    with suppress(*_GONE):
        found = psutil.Process(process.pid)
        # To a hundredth of a second
        if abs(_born(process.pid) - process.born) < 0.1:
            return found
    return None


def _born(pid: int) -> float:
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(psutil.Process(pid).create_time())


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    """All that it started, and what those did. Where the system lists a process's children they are
    asked for there: psutil looks at every process of the machine."""
    lists = list(Path(f"/proc/{process.pid}/task").glob("*/children"))
    if not lists:
        return list(process.children(recursive=True))
    found = []
    for each in lists:
        with suppress(*_GONE):
            children = [psutil.Process(int(pid)) for pid in each.read_text().split()]
            found += [one for child in children for one in (child, *_descendants(child))]
    return found


def _peak(pid: int) -> int:
    """The most memory that it ever had, in bytes; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _memory_share() -> float:
    """Of the machine or, where this process may have less, of its control group."""
    machine = psutil.virtual_memory()
    share: float = 1 - machine.available / machine.total
    group = Path("/sys/fs/cgroup")
    try:
        most = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines():
            if line.startswith("inactive_file "):
                used -= int(line.split()[1])
    except (OSError, ValueError):
        return share  # no control group of the second version, or no limit ("max")
    return max(share, used / most)
