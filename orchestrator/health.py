"""Who of a run's workers still lives, by their signs of life: plain state, without Ray.

Owns the verdict. Three things can be wrong with a worker that has not died:
- its process gives no sign at all: it is stopped, or the machine is gone;
- its process does, but its event loop does not turn and no processor works for it: it is stuck in a
  lock or a read that never returns;
- it never got through its constructor.
Each has its deadline; past it the worker is frozen. One that no node has room for is waiting, for
as long as that takes: its time to start begins when it has a place. An event loop that stands
while the process computes (weights that load, a long reward) is busy: that is told and left alone,
and the wait for it has a deadline of its own. Asking for signs, and ending who is frozen, is
`manta.orchestrator.health_watch`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from manta.actors.processes import HostFigures
from manta.actors.vitals import Identity, LifeSign

WorkerState = Literal["waiting", "starting", "alive", "busy", "silent", "frozen"]

_SILENT_PERIODS = 3
"""Signs that a worker may owe before it is called silent."""
_BUSY_SHARE = 0.05
"""Of a processor: who uses less while its event loop stands is not computing. An idle worker with
its threads uses a hundredth."""
_DRIVER_STALL_PERIODS = 3
"""A driver that did not look for longer was stopped itself, or its machine slept: nobody could have
answered it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """See `health` in the run file; `start_seconds` is what a constructor may take."""

    every_seconds: float
    frozen_after_seconds: float
    start_seconds: float


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker at one moment. `silent_seconds` count from its last sign, or while it starts from
    the beginning, to now; `doing` is where it stood at that sign, or what it waits for."""

    key: str
    role: str
    name: str
    state: WorkerState
    silent_seconds: float
    doing: str
    identity: Identity | None
    memory: int = 0
    peak_memory: int = 0
    device_peak: int = 0

    @property
    def where(self) -> str:
        """Name, process and machine, for a sentence."""
        if self.identity is None:
            return f"{self.role} {self.name}"
        process = self.identity.process
        return f"{self.role} {self.name} (process {process.pid} on {process.host})"


@dataclass(frozen=True, slots=True)
class Frozen:
    """The verdict on a worker, and why, in words. `overdue_seconds` past the deadline."""

    worker: WorkerReport
    why: str
    overdue_seconds: float


class _Record:
    def __init__(self, key: str, role: str, name: str, now: float) -> None:
        self.key, self.role, self.name = key, role, name
        self.identity: Identity | None = None
        self.sign: LifeSign | None = None
        self.begun = self.heard = now
        self.serving_since: float | None = None
        self.stuck_since: float | None = None
        self.stuck_cpu = 0.0
        self.stopped_since: float | None = None
        self.relayed_age: float | None = None
        self.asks_for = ""
        self.is_frozen = False
        self.was_told_busy = False
        self.most = (0, 0)

    @property
    def has_started(self) -> bool:
        return self.identity is not None or self.serving_since is not None


class Health:
    def __init__(self, rules: Rules, clock: Callable[[], float] = time.monotonic) -> None:
        self.rules, self._clock = rules, clock
        self._records: dict[str, _Record] = {}
        self._looked = clock()
        self._hosts: dict[str, HostFigures] = {}
        self._departed: list[WorkerReport] = []

    def begin(self, key: str, role: str, name: str) -> None:
        """A worker is being started; `key` tells it from a later one of its name."""
        self._records[key] = _Record(key, role, name, self._clock())

    def unplaced(self, waiting: Mapping[str, str]) -> list[WorkerReport]:
        """Those of `waiting` (what each asks for, by key) have no place on any node, all others
        have one; the ones of which that is news."""
        found = []
        for key, record in self._records.items():
            if record.has_started:
                continue
            had, record.asks_for = record.asks_for, waiting.get(key, "")
            if record.asks_for and not had:
                found.append(self._report(record, self._clock()))
            elif had and not record.asks_for:
                record.begun = self._clock()
        return found

    def is_any_late(self, seconds: float) -> bool:
        """Is there a worker that has not started for so long?"""
        return any(
            not record.has_started and self._clock() - record.begun >= seconds
            for record in self._records.values()
        )

    def serving(self, key: str) -> None:
        """It has answered somebody else: from here on it is no more starting, even if it stops
        before it was introduced."""
        record = self._records.get(key)
        if record is not None and record.serving_since is None:
            record.serving_since, record.asks_for = self._clock(), ""

    def introduced(self, key: str, identity: Identity) -> None:
        """Its constructor is done."""
        record = self._records[key]
        record.identity, record.heard, record.asks_for = identity, self._clock(), ""

    def heard(self, key: str, sign: LifeSign, relayed_age: float | None = None) -> None:
        """A sign of life; where somebody else passes it on, how many seconds old it is. Such a
        worker's silence is counted by that age alone: it may be the messenger who is silent."""
        record, now = self._records[key], self._clock()
        record.heard, record.sign, record.relayed_age = now, sign, relayed_age
        process = sign.process
        record.most = (
            max(record.most[0], process.peak_memory),
            max(record.most[1], sign.device_peak),
        )
        if sign.stands_seconds < self.rules.every_seconds:
            record.stuck_since, record.was_told_busy = None, False
        elif record.stuck_since is None or process.cpu_seconds - record.stuck_cpu > _BUSY_SHARE * (
            now - record.stuck_since
        ):
            # It computes: from here on it would have to stand still
            record.stuck_since, record.stuck_cpu = now, process.cpu_seconds
        if not process.is_stopped:
            record.stopped_since = None
        elif record.stopped_since is None:
            record.stopped_since = now
        if sign.host is not None and record.identity is not None:
            self._hosts[record.identity.process.host] = sign.host

    def gone(self, key: str) -> None:
        """It died, or was let go: others see to that."""
        record = self._records.pop(key, None)
        if record is not None:
            self._departed.append(self._report(record, self._clock()))

    def look(self) -> list[Frozen]:
        """Those whose deadline has passed since the last look, each once."""
        now = self._clock()
        away = now - self._looked
        self._looked = now
        if away > _DRIVER_STALL_PERIODS * self.rules.every_seconds:
            self._forgive(away)
        found = []
        for record in self._records.values():
            why = None if record.is_frozen else self._why_frozen(record, now)
            if why is not None:
                report = self._report(record, now)
                record.is_frozen = True
                found.append(Frozen(report, *why))
        return found

    def newly_busy(self) -> list[WorkerReport]:
        """Those whose event loop has stood for as long as a frozen one's may, while the process
        computes; each once."""
        found = []
        for record in self._records.values():
            stands = 0.0 if record.sign is None else record.sign.stands_seconds
            if stands > self.rules.frozen_after_seconds and not record.was_told_busy:
                record.was_told_busy = True
                found.append(self._report(record, self._clock()))
        return found

    def workers(self) -> list[WorkerReport]:
        """All that are there, by role and name."""
        now = self._clock()
        reports = [self._report(record, now) for record in self._records.values()]
        return sorted(reports, key=lambda each: (each.role, each.name))

    def departed(self) -> Sequence[WorkerReport]:
        """Those that are gone, in the order in which they went."""
        return self._departed

    def hosts(self) -> dict[str, HostFigures]:
        """What each machine said of itself last."""
        return dict(self._hosts)

    def witness(self) -> str:
        """For the error of a wait that missed its deadline: who gives no sign, or stands still."""
        workers = self.workers()
        told = [_told(each) for each in workers if each.state != "alive"]
        if told:
            return "Not answering: " + "; ".join(told) + "."
        at_work = [f"{each.where} is in {each.doing}" for each in workers if each.doing]
        if not at_work:
            return "Every worker gives signs of life and none is at work."
        return "Every worker gives signs of life. " + "; ".join(at_work) + "."

    def _forgive(self, seconds: float) -> None:
        for record in self._records.values():
            record.begun += seconds
            record.heard += seconds
            for name in ("stuck_since", "stopped_since", "serving_since"):
                since = getattr(record, name)
                if since is not None:
                    setattr(record, name, since + seconds)

    def _why_frozen(self, record: _Record, now: float) -> tuple[str, float] | None:
        most = self.rules.frozen_after_seconds
        if record.asks_for:
            return None
        if not record.has_started:
            late = now - record.begun - self.rules.start_seconds
            if late <= 0:
                return None
            return (
                f"it has not started after {now - record.begun:.0f} s: its constructor hangs",
                late,
            )
        if (silent := _silence(record, now)) > most:
            return f"its process has given no sign of life for {silent:.0f} s", silent - most
        if record.stopped_since is not None and now - record.stopped_since > most:
            assert record.sign is not None
            stopped = now - record.stopped_since
            return f"for {stopped:.0f} s {record.sign.process.state}", stopped - most
        if record.stuck_since is not None and now - record.stuck_since > most:
            assert record.sign is not None
            stuck = now - record.stuck_since
            return (
                f"its event loop has stood still for {stuck:.0f} s without computing, in "
                f"{record.sign.doing}",
                stuck - most,
            )
        return None

    def _report(self, record: _Record, now: float) -> WorkerReport:
        sign = record.sign
        return WorkerReport(
            key=record.key,
            role=record.role,
            name=record.name,
            state=self._state(record, now),
            silent_seconds=_silence(record, now),
            doing=_doing(record),
            identity=record.identity,
            memory=0 if sign is None else sign.process.memory,
            peak_memory=record.most[0],
            device_peak=record.most[1],
        )

    def _state(self, record: _Record, now: float) -> WorkerState:
        if record.is_frozen:
            return "frozen"
        if not record.has_started:
            return "waiting" if record.asks_for else "starting"
        periods = _SILENT_PERIODS * self.rules.every_seconds
        if _silence(record, now) > periods or record.stopped_since is not None:
            return "silent"
        stands = 0.0 if record.sign is None else record.sign.stands_seconds
        return "busy" if stands > periods else "alive"


def _silence(record: _Record, now: float) -> float:
    """Seconds since its last sign, or since it began to start."""
    if record.identity is None:
        return now - (record.begun if record.serving_since is None else record.serving_since)
    return now - record.heard if record.relayed_age is None else record.relayed_age


def _doing(record: _Record) -> str:
    if record.asks_for:
        return f"waits for a node with room for it ({record.asks_for})"
    return "" if record.sign is None else record.sign.doing


def _told(worker: WorkerReport) -> str:
    if worker.state == "waiting":
        return f"{worker.where} {worker.doing} for {worker.silent_seconds:.0f} s"
    if worker.state == "starting":
        return f"{worker.where}, starting for {worker.silent_seconds:.0f} s"
    if worker.state == "busy":
        return f"{worker.where}, whose event loop stands in {worker.doing}"
    doing = f", when it was in {worker.doing}" if worker.doing else ""
    return f"{worker.where}, last sign {worker.silent_seconds:.0f} s ago{doing}"
