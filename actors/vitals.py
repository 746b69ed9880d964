"""A worker's signs of life: who it is, and whether its event loop still turns.

Owns what can be said from a thread beside the event loop while that is busy, or stuck. What is made
of it is the driver's business (`manta.orchestrator.health`). The Ray side is
`manta.actors.alive`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from manta.actors.processes import (
    NOT_KNOWN,
    HostFigures,
    Known,
    ProcessFigures,
    figures,
    host_figures,
    this_process,
)

STACKS_SIGNAL = signal.SIGUSR2
"""A process that gets it writes the stacks of all its threads (some engines take SIGUSR1)."""

_STANDS_SECONDS = 1.0
"""A loop that has not turned for less is only busy."""
_FRAMES = 4
_CALLS = 5
_TASKS = 64
_OURS = f"{os.sep}actors{os.sep}"
"""In the name of a file of workers' code."""
_QUIET = ("introduce", "ping", "stay")
"""Calls that are always there, and say nothing."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Where a worker is. `node` is Ray's name of the machine; `log` the file that its errors go to;
    `stacks` the number of the open file that stacks are written to."""

    process: Known
    node: str
    log: str
    stacks: int


@dataclass(frozen=True, slots=True)
class LifeSign:
    """`stands_seconds`: for how long the event loop has not turned; `doing` is where it stands, or
    else the calls under way, with their numbers. `device_peak`: the most bytes that torch has held
    of a GPU. `host` only where it was asked for."""

    stands_seconds: float
    doing: str
    process: ProcessFigures
    device_peak: int = 0
    host: HostFigures | None = None


class Pulse:
    """Feels the pulse of event loop `loop`, whose `thread` has that number, from another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        self._loop, self._thread = loop, thread
        self._asked: float | None = None
        self._calls = ""

    def sign(self, wants_host: bool = False) -> LifeSign:
        asked = self._asked  # the loop may turn at any moment
        if asked is None:
            asked = self._asked = time.monotonic()
            with suppress(RuntimeError):  # the loop was closed: it will turn no more
                self._loop.call_soon_threadsafe(self._turn)
        stands = time.monotonic() - asked
        doing = self._calls
        if stands >= _STANDS_SECONDS:
            doing = innermost(sys._current_frames().get(self._thread))
        process = figures(this_process()) or NOT_KNOWN
        host = None
        if wants_host:
            with suppress(OSError):  # somebody cleared the folder away: a sign of life all the same
                host = host_figures(log_file().parent)
        return LifeSign(stands, doing, process, _device_peak(), host)

    def _turn(self) -> None:
        """On the loop itself."""
        self._asked = None
        self._calls = calls_under_way()


def introduce(node: str) -> Identity:
    """Who this process is; from now on `STACKS_SIGNAL` makes it write its stacks."""
    file = _stacks_file()
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True, chain=False)
    return Identity(this_process(), node, str(log_file()), file)


def log_file() -> Path:
    """The file that this process's errors go to, if it is one; else one in the
    temporary folder that does not exist."""
    with suppress(OSError):
        path = Path(os.readlink(f"/proc/{os.getpid()}/fd/2"))
        if path.is_file():
            return path
    return Path(tempfile.gettempdir()) / "none"


def innermost(frame: FrameType | None) -> str:
    """Where `frame` is, in a line: the innermost call, then the innermost ones of actors."""
    if frame is None:
        return ""
    stack = list(traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False))
    shown = [f for i, f in enumerate(stack) if i == 0 or _OURS in f.filename]
    return " < ".join(f"{f.name} ({Path(f.filename).name}:{f.lineno})" for f in shown[:_FRAMES])


def sign_of_thread(thread: int) -> LifeSign:
    """Of a process that runs no event loop: what `thread`, which does its work, is in."""
    process = figures(this_process()) or NOT_KNOWN
    frame = sys._current_frames().get(thread)
    return LifeSign(0.0, innermost(frame), process, _device_peak())


def calls_under_way() -> str:
    """The methods that others have called of this process and still wait for, on this loop."""
    counts: Counter[str] = Counter()
    for task in list(asyncio.all_tasks())[:_TASKS]:
        name = _called(task.get_coro())
        if name and name not in _QUIET:
            counts[name] += 1
    return ", ".join(
        name if count == 1 else f"{name} x{count}" for name, count in counts.most_common(_CALLS)
    )


def _called(coroutine: Any) -> str:
    """The method of a shell that `coroutine`, of Ray's, runs; "" where it is of a task of ours."""
    if "manta" in _file(coroutine):
        return ""
    while coroutine is not None:
        if _OURS in _file(coroutine):
            return str(coroutine.__name__)
        coroutine = getattr(coroutine, "cr_await", None)
    return ""


def _file(coroutine: Any) -> str:
    """Where its code is; "" where that is compiled, as Ray's own coroutines are."""
    return str(getattr(getattr(coroutine, "cr_code", None), "co_filename", ""))


_STACKS: list[int] = []


def _stacks_file() -> int:
    """One for the life of the process. In memory where the system can: a full disk must not keep
    anybody from looking."""
    if not _STACKS:
        if hasattr(os, "memfd_create"):
            _STACKS.append(os.memfd_create("manta-stacks"))
        else:
            number, name = tempfile.mkstemp(prefix="manta-stacks-")
            os.unlink(name)
            _STACKS.append(number)
    return _STACKS[0]


def _device_peak() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())
