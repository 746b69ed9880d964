"""Where the time goes: named phases of the driver, summed by step and run, and drawn as a timeline.

Owns the stop-watches and `timeline.json` (Chrome trace events, readable by Perfetto and
chrome://tracing). Phases may overlap, also several of one name: the driver waits for many things
at once, so phase seconds do not sum to wall seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from manta.actors.line_file import LineFile
from manta.envs.records import Json

PHASES = ("start_up", "generate", "assemble", "learn", "publish", "evaluate", "checkpoint")
"""The usual names, in the order of their rows in the timeline."""


class PhaseClock:
    """Times phases and writes each as it ends; for one thread (the driver's event loop).

    The trace is a JSON array that is never closed, which its readers accept: a killed run's file
    is good up to the kill.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        """Goes on writing the timeline at `path`, or starts one."""
        self._clock = clock
        self._file = LineFile(path)
        if self._file.position() == 0:
            self._file.append("[")
        # Monotonic time shifted to the epoch: a resumed run's events come after its first life's.
        self._epoch = time.time() - clock()
        self._cpu_start = time.process_time()
        self._totals: dict[str, float] = {}
        self._step: dict[str, float] = {}
        self._rows: dict[str, int] = {}
        self._busy_rows: set[str] = set()
        for name in PHASES:
            self._row(name)

    @contextmanager
    def phase(self, name: str, **fields: Json) -> Iterator[None]:
        """Times what runs inside, also where it raises; the timeline shows `fields` with it."""
        start = self._clock()
        row = next(row for row in self._row_names(name) if row not in self._busy_rows)
        self._busy_rows.add(row)
        try:
            yield
        finally:
            seconds = self._clock() - start
            self._busy_rows.remove(row)
            self._totals[name] = self._totals.get(name, 0.0) + seconds
            self._step[name] = self._step.get(name, 0.0) + seconds
            duration = {"dur": round(seconds * 1e6), "tid": self._row(row), "args": fields}
            self._write("X", name, start, duration)

    def mark(self, name: str, **fields: Json) -> None:
        """Draws an instant (a fault, a restart) across all rows."""
        self._write("i", name, self._clock(), {"s": "g", "args": fields})

    def levels(self, name: str, values: Mapping[str, float]) -> None:
        """Draws counters, such as queue depths, as of now."""
        self._write("C", name, self._clock(), {"args": dict(values)})

    def take_step(self) -> dict[str, float]:
        """Seconds by phase that ended since the last call."""
        step, self._step = self._step, {}
        return step

    def totals(self) -> dict[str, float]:
        """Seconds by phase since this clock was made."""
        return dict(self._totals)

    def is_in(self, *names: str) -> bool:
        """Is a phase of one of these names under way?"""
        return not self._busy_rows.isdisjoint(names)

    def cpu_seconds(self) -> float:
        """Processor seconds that this process has used since this clock was made."""
        return time.process_time() - self._cpu_start

    def close(self) -> None:
        self._file.close()

    def _row_names(self, name: str) -> Iterator[str]:
        yield name
        for number in itertools.count(2):
            yield f"{name} {number}"

    def _row(self, name: str) -> int:
        """The row (a thread, to the viewers) called `name`; phases that overlap get their own."""
        if name not in self._rows:
            self._rows[name] = len(self._rows) + 1
            row = {"tid": self._rows[name], "args": {"name": name}}
            self._write("M", "thread_name", self._clock(), row)
            order = {"tid": self._rows[name], "args": {"sort_index": self._rows[name]}}
            self._write("M", "thread_sort_index", self._clock(), order)
        return self._rows[name]

    def _write(self, kind: str, name: str, at: float, fields: Mapping[str, object]) -> None:
        microseconds = round((self._epoch + at) * 1e6)
        event = {"ph": kind, "name": name, "ts": microseconds, "pid": os.getpid(), **fields}
        self._file.append(json.dumps(event) + ",")
