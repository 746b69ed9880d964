"""A close look at processes of this machine: their state, the stacks of all their threads, the end
of their logs.

Runs on the machine itself, by whoever may signal its processes. Needs nothing of the processes but
that they run (`manta.actors.vitals` has made them ready); of one that is stopped there is no stack.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manta.actors.processes import figures
from manta.actors.vitals import STACKS_SIGNAL, Identity

_STACK_SECONDS = 2.0
_LOG_LINES = 8
_LOG_BYTES = 16384
_MOST_STACKS = 20_000
_SECRET = re.compile(
    r"(?i)([A-Z0-9_]*(?:KEY|SECRET|PASSWORD|CREDENTIAL|TOKEN)[A-Z0-9_]*\W{0,3}[=:]\s*)\S+"
)


@dataclass(frozen=True, slots=True)
class Examined:
    """`state` in words, "" where the process is gone; `cpu_share` of a processor while it was
    looked at."""

    state: str
    cpu_share: float
    stacks: str
    log: str


def examine(workers: Sequence[Identity]) -> list[Examined]:
    """Of each worker, all of them on this machine, in their order."""
    began = time.monotonic()
    before = [figures(worker.process) for worker in workers]
    sizes = [_ask_for_stacks(worker) for worker in workers]
    time.sleep(0.5)
    found = []
    for worker, first, size in zip(workers, before, sizes, strict=True):
        if first is None:
            found.append(Examined("", 0.0, "", _end_of(worker.log)))
            continue
        stacks = "" if size is None or first.is_stopped else _stacks(worker, size)
        now = figures(worker.process)
        used = 0.0 if now is None else now.cpu_seconds - first.cpu_seconds
        share = used / (time.monotonic() - began)
        found.append(Examined(first.state, share, stacks, _end_of(worker.log)))
    return found


def _ask_for_stacks(worker: Identity) -> int | None:
    """Where in its file the stacks will begin; None where it cannot be asked."""
    if figures(worker.process) is None or not _catches(worker.process.pid):
        return None
    with suppress(OSError):
        size = _file(worker).stat().st_size
        os.kill(worker.process.pid, STACKS_SIGNAL)
        return size
    return None


def _catches(pid: int) -> bool:
    """Does it catch the signal? It would end one that does not."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (STACKS_SIGNAL - 1) & 1)
    return False


def _stacks(worker: Identity, start: int) -> str:
    """What it has written since, once it writes no more."""
    end = time.monotonic() + _STACK_SECONDS
    last = start
    with suppress(OSError):
        while time.monotonic() < end:
            size = _file(worker).stat().st_size
            if size > start and size == last:
                break
            last = size
            time.sleep(0.1)
        with _file(worker).open("rb") as file:
            file.seek(start)
            return file.read(_MOST_STACKS).decode(errors="replace")
    return ""


def _file(worker: Identity) -> Path:
    return Path(f"/proc/{worker.process.pid}/fd/{worker.stacks}")


def _end_of(log: str) -> str:
    """The last lines, without what looks like a secret."""
    with suppress(OSError), Path(log).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(without_secrets(line) for line in lines)
    return ""


def without_secrets(line: str) -> str:
    return _SECRET.sub(r"\1***", line)
