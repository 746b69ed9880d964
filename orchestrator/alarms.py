"""Alarms: what goes wrong slowly, told once with its cause and what to do, before it ends a run.

Owns thresholds and what they are held against; plain state, no I/O. An alarm is told again only
after its figure has been well in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile
from typing import Final

import numpy as np

from manta.actors.processes import HostFigures
from manta.orchestrator.metrics import IDLE_SHARE

STEP: Final = "time/step"

SLOW_FACTOR = 4.0
"""Times the median: lengths with a long tail make steps of twice and three times the usual."""
SLOW_SECONDS = 10.0
"""Above the median at least: what takes less than this extra costs nobody a thought."""
FEWEST_STEPS = 10
"""Steps before there is a usual one: the first few warm up."""
WINDOW = 20
"""Steps that are the usual: long enough for a median, short enough to follow growing answers."""
IDLE_ENGINES = 0.9
"""Share of row-seconds: with alternating phases and a long tail two thirds are common."""
WAITING_LITTLE = 0.1
"""Of the step, for samples: where the driver waits longer for them, rows are idle since there are
more than are used, and not since the engines wait."""
IDLE_LEARNER = 0.95
"""Share of the step: a learner may be fast, but then more engines would make the run twice as
fast."""
IDLE_STEPS = 50
"""In a row, for the last two: a setting is wrong, not a step."""
QUEUE_LEAST = 64.0
"""Calls: shorter queues come and go."""
QUEUE_GROWTH = 1.5
"""From each third of the window to the next: grows, and does not just swing."""
BROKEN_SHARE = 0.2
"""Of groups: one in five lost to the world costs more than a second try of each."""
BROKEN_LEAST = 16
"""Groups lost in between two looks at least."""
MEMORY_SHARE = 0.85
"""Of a machine: at 95% Ray kills workers, and a copy of a model fits into less than 10%."""
SESSION_DISK_SHARE = 0.9
"""Of Ray's disk: above 95% Ray makes no more objects there."""
RUN_DISK_CHECKPOINTS = 2.0
"""Free room, in sizes of the newest checkpoint: the next one is written before an old one goes."""
RUN_DISK_BYTES = 1 << 30
"""Free room at least: trajectories and metrics of an hour."""
_CLEAR = 0.9
"""Of a threshold: what falls below is well again."""

_PHASES = {
    "time/generate": ("making samples", "look for long answers (length/max), engines lost "
                      "(events.jsonl) or a slow environment; rollout.cap bounds the longest"),
    "time/score": ("rewards of the whole step", "look at the reward workers' and scorers' queues"),
    "time/learn": ("the learner", "look for longer rows (tokens/total) or another program on its "
                   "cores"),
    "time/publish": ("publishing the weights", "look for engines that were sent them twice "
                     "(publish/resent) or a slow transport"),
    "time/checkpoint_wait": ("waiting for the checkpoint before", "its disk is slower than "
                             "checkpoint.every_steps asks for: raise that, or use a faster one"),
    "time/evaluate": ("evaluation", "evaluate.prompts and evaluate.every_steps say how much"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alarm:
    """`kind` tells alarms apart; `what`, `cause` and `advice` are sentences without their dots."""

    kind: str
    what: str
    cause: str
    advice: str

    def __str__(self) -> str:
        rest = (f"{part[0].upper()}{part[1:]}" for part in (self.cause, self.advice))
        return ". ".join((self.what, *rest))


class StepAlarms:
    """Over the steps of one stage."""

    def __init__(self, is_colocated: bool = False) -> None:
        self._is_colocated = is_colocated
        self._stage = ""
        self._steps: deque[Mapping[str, float]] = deque(maxlen=max(WINDOW, IDLE_STEPS))
        self._told: set[str] = set()

    def step(self, stage: str, metrics: Mapping[str, float]) -> list[Alarm]:
        """What is alarming about a step, that was not told already."""
        if stage != self._stage:
            self._stage = stage
            self._steps.clear()
            self._told.clear()
        found = [each for each in (self._slow(metrics),) if each is not None]
        self._steps.append(metrics)
        found += [each for each in (self._idle(), self._learner_idle()) if each is not None]
        found += self._queues()
        kinds = {each.kind for each in found}
        new = [each for each in found if each.kind not in self._told]
        self._told = kinds
        return new

    def _slow(self, metrics: Mapping[str, float]) -> Alarm | None:
        before = list(self._steps)[-WINDOW:]
        if len(before) < FEWEST_STEPS or STEP not in metrics:
            return None
        usual = _median(before, STEP)
        seconds = metrics[STEP]
        if seconds < SLOW_FACTOR * usual or seconds < usual + SLOW_SECONDS:
            return None
        extra = {name: metrics.get(name, 0.0) - _median(before, name) for name in _PHASES}
        worst = max(extra, key=lambda name: extra[name])
        told, advice = _PHASES[worst]
        return Alarm(
            "slow step",
            f"a step took {seconds:.1f} s, usual are {usual:.1f} s",
            f"{extra[worst]:.1f} s more than usual went to {told}",
            advice,
        )

    def _idle(self) -> Alarm | None:
        share = self._least(IDLE_SHARE)
        if self._is_colocated or share is None or share < IDLE_ENGINES:
            return None
        steps = list(self._steps)[-IDLE_STEPS:]
        if _median(steps, "time/generate") > WAITING_LITTLE * _median(steps, STEP):
            return None
        return Alarm(
            "engines idle",
            f"the engines were idle for over {share:.0%} of each of {IDLE_STEPS} steps",
            "they wait for the learner",
            "use fewer engines, or a faster learner (more ranks, larger micro-batches)",
        )

    def _learner_idle(self) -> Alarm | None:
        # The newest first: as a rule it ends the look
        shares = map(_learner_idle, islice(reversed(self._steps), IDLE_STEPS))
        idle = list(takewhile(lambda share: share >= IDLE_LEARNER, shares))
        if len(idle) < IDLE_STEPS:
            return None
        return Alarm(
            "learner idle",
            f"the learner was idle for over {min(idle):.0%} of each of {IDLE_STEPS} steps",
            "it waits for samples",
            "use more engines (rollout.workers) or environment workers, or raise "
            "rollout.max_staleness",
        )

    def _queues(self) -> Iterator[Alarm]:
        names = {"router/waiting": "calls wait for an engine"} | {
            name: f"items wait for scorer {name.split('/')[1]}"
            for name in (self._steps[-1] if self._steps else {})
            if name.startswith("scorer/") and name.endswith("/queue")
        }
        for name, told in names.items():
            values = [each[name] for each in list(self._steps)[-WINDOW:] if name in each]
            if len(values) < WINDOW:
                continue
            thirds = [float(np.mean(part)) for part in np.array_split(values, 3)]
            grows = all(b > QUEUE_GROWTH * a for a, b in pairwise(thirds))
            if grows and thirds[-1] >= QUEUE_LEAST:
                yield Alarm(
                    f"queue {name}",
                    f"{thirds[-1]:.0f} {told}, {thirds[0]:.0f} did {WINDOW} steps ago",
                    "more is asked than answered",
                    "use more of these workers",
                )

    def _least(self, name: str) -> float | None:
        """Of the last `IDLE_STEPS` steps, where all of them have it."""
        values = [each[name] for each in list(self._steps)[-IDLE_STEPS:] if name in each]
        return min(values) if len(values) == IDLE_STEPS else None


class PlaceAlarms:
    """Over disks, memory and groups lost; asked every now and then."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._broken = self._settled = 0

    def host(self, name: str, figures: HostFigures) -> list[Alarm]:
        """Of the machine `name`; its disk is the one that Ray's session lies on."""
        memory, disk = f"memory {name}", f"session disk {name}"
        found = []
        if self._is_new(memory, figures.memory_share, MEMORY_SHARE):
            found.append(
                Alarm(
                    memory,
                    f"{figures.memory_share:.0%} of the memory of {name} is in use",
                    "at 95% Ray kills workers there",
                    "manta doctor shows each worker's memory; use fewer or smaller ones, or a "
                    "lower learner.tokens_per_micro_batch",
                )
            )
        if self._is_new(disk, figures.disk_share, SESSION_DISK_SHARE):
            found.append(
                Alarm(
                    disk,
                    f"the disk of Ray's session on {name} is {figures.disk_share:.0%} full "
                    f"({_size(figures.disk_free)} free)",
                    "above 95% Ray makes no more objects",
                    "make room, or start Ray with --temp-dir on another disk",
                )
            )
        return found

    def run_directory(self, free: int, newest_checkpoint: int) -> list[Alarm]:
        """Bytes that are free where the run directory is, and of its newest checkpoint."""
        wanted = max(RUN_DISK_CHECKPOINTS * newest_checkpoint, RUN_DISK_BYTES)
        if not self._is_new("run disk", wanted / max(1, free), 1.0):
            return []
        return [
            Alarm(
                "run disk",
                f"{_size(free)} are free on the disk of the run directory",
                f"a checkpoint takes {_size(newest_checkpoint)}, and the next one is written "
                "before an old one goes",
                "make room, lower checkpoint.keep, or set track.write_trajectories: false",
            )
        ]

    def groups(self, broken: int, settled: int) -> list[Alarm]:
        """Groups that the world broke, and all that were settled, since the run began."""
        lost, all_ = broken - self._broken, settled - self._settled
        if lost < BROKEN_LEAST and all_ < 5 * BROKEN_LEAST:
            return []  # too few to tell: they count at the next look
        self._broken, self._settled = broken, settled
        if lost < BROKEN_LEAST or not self._is_new("groups", lost / max(1, all_), BROKEN_SHARE):
            return []
        return [
            Alarm(
                "groups",
                f"{lost} of the last {all_} groups broke and were made again or dropped",
                "ledger.jsonl has the reason of each (outcome dropped)",
                "look for a reward, scorer or environment that times out, or engines that die",
            )
        ]

    def _is_new(self, kind: str, value: float, threshold: float) -> bool:
        if value < _CLEAR * threshold:
            self._told.discard(kind)
        if value < threshold or kind in self._told:
            return False
        self._told.add(kind)
        return True


def incomplete_evaluation(broken: int) -> Alarm:
    """Of one in which so many held-out tasks broke in every attempt."""
    return Alarm(
        "evaluation",
        f"{broken} held-out tasks broke in every attempt: the accuracy is that of the others",
        "an environment, a reward or an engine fails at them",
        "evaluate again (manta eval) once it does not; until then compare this accuracy with no "
        "other",
    )


def _learner_idle(metrics: Mapping[str, float]) -> float:
    """Share of the step; 0 where nothing tells."""
    busy = [metrics[name] for name in metrics if name.startswith("time/learner/")]
    if not busy or metrics.get(STEP, 0.0) <= 0:
        return 0.0
    return 1 - min(1.0, sum(busy) / metrics[STEP])


def _median(steps: list[Mapping[str, float]], name: str) -> float:
    return float(np.median([each.get(name, 0.0) for each in steps]))


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
