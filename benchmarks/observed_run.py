"""A command that trains, watched from outside: when its steps end, and what its processes burn.

Counts the processor time of every process that the command started, however far from it: they all
inherit a mark in their environment. Knows neither side of a comparison.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_MARK = "MANTA_BENCHMARK_RUN"
_POLL_SECONDS = 0.005
_CLOCK_TICK = 0.01
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Window:
    """Steps `first`..`last` (counted from 1) are measured; those before warm up."""

    first: int
    last: int

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Observed:
    """`start_up` is from the start of the command to the end of its first step; `step_seconds` are
    the wall seconds of each measured step, by the command's own clock; `cpu_seconds` those of all
    its `processes` over the measured steps together."""

    start_up: float
    step_seconds: tuple[float, ...]
    cpu_seconds: float
    processes: int


def observe(
    command: Sequence[str],
    log: Path,
    lines: Path,
    window: Window,
    cores: Sequence[int],
    deadline_seconds: float,
) -> Observed:
    """Runs `command` from the repository's root, on `cores` only, one thread a core, to its end.

    `log` gets its output; `lines` is where it writes a JSON object with `step` and `seconds` after
    each step. Raises RuntimeError where the command fails, or the time of a process is lost, and
    TimeoutError.
    """
    mark = uuid.uuid4().hex
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            cwd=_ROOT,
            env=_environment(mark, len(cores)),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    watch = _Watch(process, lines, began + deadline_seconds, log)
    try:
        watch.until(1)
        start_up = time.perf_counter() - began
        watch.until(window.first - 1)
        before = processor_times(mark)
        watch.at(window.first - 1)
        watch.until(window.last)
        after = processor_times(mark)
        watch.at(window.last)
        watch.to_the_end()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    ends = {line["step"]: line["seconds"] for line in watch.seen()}
    return Observed(
        start_up,
        tuple(ends[s] - ends[s - 1] for s in range(window.first, window.last + 1)),
        _seconds_between(before, after),
        len(after),
    )


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """A live process's own seconds (user and system), and those of its children that ended."""

    own: float
    children: float


def processor_times(mark: str) -> dict[int, ProcessorTime]:
    """Of every live process that has `mark`, by process id."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                times = process.cpu_times()
                found[process.pid] = ProcessorTime(
                    times.user + times.system, times.children_user + times.children_system
                )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _seconds_between(
    before: Mapping[int, ProcessorTime], after: Mapping[int, ProcessorTime]
) -> float:
    """What all processes used between two looks. One that ended meanwhile stands among the children
    of its parent; raises RuntimeError where it does not, and its time is lost."""
    own = sum(t.own for t in after.values()) - sum(t.own for t in before.values())
    children = sum(t.children for t in after.values()) - sum(t.children for t in before.values())
    gone = {pid: before[pid].own for pid in before.keys() - after.keys()}
    if children < sum(gone.values()) - _CLOCK_TICK * len(gone):
        raise RuntimeError(f"processes {sorted(gone)} ended and nobody noted what they used")
    return own + children


class _Watch:
    """Reads the lines of a running command."""

    def __init__(
        self, process: subprocess.Popen[bytes], lines: Path, deadline: float, log: Path
    ) -> None:
        self._process, self._lines, self._deadline, self._log = process, lines, deadline, log

    def until(self, step: int) -> None:
        """Returns when the line of `step` is there."""
        while self.last_step() < step:
            code = self._process.poll()
            if code is not None:
                told = f"exit code {code} before step {step}:\n{self._end_of_log()}"
                raise RuntimeError(told)
            if time.perf_counter() > self._deadline:
                raise TimeoutError(f"no step {step} in time:\n{self._end_of_log()}")
            time.sleep(_POLL_SECONDS)

    def at(self, step: int) -> None:
        """Raises RuntimeError where more steps than `step` have ended: they would be miscounted."""
        if self.last_step() != step:
            raise RuntimeError(f"step {step} went by before it was seen: slow the steps")

    def to_the_end(self) -> None:
        code = self._process.wait(max(1.0, self._deadline - time.perf_counter()))
        if code != 0:
            raise RuntimeError(f"exit code {code}:\n{self._end_of_log()}")

    def last_step(self) -> int:
        return max((int(line["step"]) for line in self.seen()), default=0)

    def seen(self) -> list[Mapping[str, float]]:
        if not self._lines.exists():
            return []
        whole = self._lines.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in whole]

    def _end_of_log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-4000:]


def _environment(mark: str, threads: int) -> dict[str, str]:
    """The caller's, without what would send a run elsewhere."""
    hidden = ("RAY_ADDRESS", "WANDB_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {
        **kept,
        _MARK: mark,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
