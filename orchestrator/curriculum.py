"""A curriculum by pass rate: which tasks an epoch takes, and in which order.

The first epoch has the order that the seed decides. Every later one is arranged when its first
group is admitted, by the pass rates that are in the ledger by then, and stays as it is: in memory
while groups of it are outstanding, and in every checkpoint of that time. What is still under way
counts as it did the time before; a task of which nothing is known counts as the mean of the others.

A task's pass rate is the share of its samples that were right the last time. It is no average over
earlier times: a task comes once an epoch, so that one would be of policies that are long gone. What
a few samples say by chance is set right when the task comes the next time, also where it was left
out: it rests, and comes back.

Owns pass rates and orders. When an epoch begins, and which groups are outstanding, is the feed's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from manta.algorithms.filters import RIGHT
from manta.envs.records import GroupId, GroupSummary, Int32
from manta.envs.sources.order import EpochOrder
from manta.orchestrator.curriculum_settings import CurriculumSettings
from manta.orchestrator.packed_array import packed, unpacked

EPOCH: Final = "curriculum/epoch"
SKIPPED: Final = "curriculum/skipped_share"
BEFORE: Final = "curriculum/pass_rate_before"


class PassRate(NamedTuple):
    """The share of a task's samples that were right in `epoch`; `rested` counts the epochs that it
    was left out of for that."""

    rate: float
    epoch: int
    rested: int = 0


@dataclass(frozen=True, slots=True)
class Arrangement:
    """`order_N` has every task once: those that the epoch takes, `num_taken` of them, in order, and
    behind them those that it leaves out. `would_be_empty`: all were to be left out, so none is."""

    order_N: Int32
    num_taken: int
    would_be_empty: bool = False


@dataclass(frozen=True, slots=True)
class BegunEpoch:
    """An epoch that was arranged by the pass rates up to `step`; `skipped` are the places of the
    tasks that it leaves out, each with the reason. `would_be_empty`: these would have been all, and
    so are none; said of the first such epoch in a row."""

    epoch: int
    step: int
    skipped: tuple[tuple[GroupId, str], ...]
    would_be_empty: bool


@dataclass(frozen=True, slots=True)
class KeptOrder:
    """The order of an epoch in a checkpoint, `order` packed."""

    epoch: int
    num_taken: int
    order: str


@dataclass(frozen=True, slots=True)
class CurriculumState:
    """What a checkpoint keeps: the tasks that have a pass rate and what is known of each, packed;
    and the orders of the epochs with groups to come."""

    num_tasks: int
    tasks: str
    rates: str
    epochs: str
    rested: str
    orders: tuple[KeptOrder, ...]


def arrange(
    settings: CurriculumSettings,
    known: Mapping[int, PassRate],
    num_tasks: int,
    epoch: int,
    seed: int,
) -> Arrangement:
    """The order of `epoch` over tasks 0..num_tasks-1, by what is `known` of them.

    With `nearest_to` 0.5 it is that of `p (1 - p)`, largest first: the tasks whose success varies
    most, which Foster et al. (arXiv 2502.12272) prefer, and whose variance bounds the expected
    improvement from below (Bae et al., arXiv 2504.03380). Any other target is AdaRFT's choice (Shi
    et al., arXiv 2504.05520: what is nearest to a target difficulty), with a target that stands
    still; 1 is easy to hard, as in E2H (Parashar et al., arXiv 2506.06632). That what taught
    nothing in one epoch seldom does in the next is GRESO's finding (Zheng et al., arXiv
    2506.02177), which draws by chance what it skips. All of this is from the papers' abstracts and
    the authors' pages; their own schedules are not made here. Equals are in random order.
    """
    rate_N, rested_N = np.full(num_tasks, np.nan), np.zeros(num_tasks, np.int32)
    for task, last in known.items():
        rate_N[task], rested_N[task] = last.rate, last.rested
    is_out_N = (rate_N < settings.low) | (rate_N > settings.high)
    rests_N = is_out_N & (rested_N < settings.rest_epochs)
    would_be_empty = bool(rests_N.all())
    if would_be_empty:
        rests_N[:] = False
    distance_N = np.zeros(num_tasks)
    if settings.nearest_to is not None and known:
        expected_N = np.where(np.isnan(rate_N), np.nanmean(rate_N), rate_N)
        # Rounded: 1/3 and 2/3 are equally far from 1/2
        distance_N = np.abs(expected_N - settings.nearest_to).round(9)
    order_N = np.lexsort((_tickets(num_tasks, epoch, seed), distance_N, rests_N)).astype(np.int32)
    return Arrangement(order_N, num_tasks - int(rests_N.sum()), would_be_empty)


class Curriculum:
    """The order of a stage's tasks, and their pass rates by `component`."""

    def __init__(
        self, settings: CurriculumSettings, component: str, first: EpochOrder, step: int
    ) -> None:
        """`first` is the order of the first epoch; `step` the newest that is settled."""
        self._settings, self._component, self._first = settings, component, first
        self._step = step
        self._known: dict[int, PassRate] = {}
        self._arranged: dict[int, Arrangement] = {}
        self._begun: list[BegunEpoch] = []
        self._would_be_empty = False
        self._metrics: dict[str, float] = {}

    def num_places(self, epoch: int) -> int:
        """How many tasks `epoch` takes."""
        return self._first.length if epoch == 0 else self._arranged[epoch].num_taken

    def index(self, epoch: int, position: int) -> int:
        """Which task stands at this place; of the tasks left out, behind those that are taken."""
        if epoch == 0:
            return self._first.index(epoch, position)
        return int(self._arranged[epoch].order_N[position])

    def begin(self, epoch: int) -> None:
        """The first group of `epoch` is about to be admitted: its order is fixed from here on."""
        order, was_empty = self._first, self._would_be_empty
        found = arrange(self._settings, self._known, order.length, epoch, order.seed)
        self._arranged[epoch], self._would_be_empty = found, found.would_be_empty
        skipped = []
        for place in range(found.num_taken, order.length):
            task = int(found.order_N[place])
            skipped.append((GroupId(epoch, place, 0), self._why_skipped(task)))
            last = self._known[task]
            self._known[task] = last._replace(rested=last.rested + 1)
        is_news = found.would_be_empty and not was_empty
        self._begun.append(BegunEpoch(epoch, self._step, tuple(skipped), is_news))

    def settle(
        self, step: int, groups: Sequence[GroupSummary], open_epochs: Collection[int]
    ) -> None:
        """`groups` are what `step` took, trained or filtered. Groups to come are of `open_epochs`:
        the orders of the others go."""
        self._step = step
        self._metrics = self._measured(groups)
        for group in groups:
            rate = pass_rate(group, self._component)
            task = self.index(*group.id[:2])
            last = self._known.get(task)
            # A step may hold a task twice, where epochs meet
            if rate is not None and (last is None or last.epoch <= group.id.epoch):
                self._known[task] = PassRate(rate, group.id.epoch)
        self._arranged = {e: found for e, found in self._arranged.items() if e in open_epochs}

    def begun(self) -> list[BegunEpoch]:
        """The epochs that have begun since the last call."""
        begun, self._begun = self._begun, []
        return begun

    def metrics(self) -> Mapping[str, float]:
        """Of the newest settled step: the newest epoch that it has groups of, the share of all
        tasks that this epoch leaves out, and the mean pass rate that its tasks had before."""
        return self._metrics

    def state(self) -> CurriculumState:
        """For a checkpoint, right after a step was settled."""
        tasks = sorted(self._known)
        known = [self._known[task] for task in tasks]
        return CurriculumState(
            self._first.length,
            packed(np.array(tasks, np.int64)),
            packed(np.array([last.rate for last in known], np.float64)),
            packed(np.array([last.epoch for last in known], np.int64)),
            packed(np.array([last.rested for last in known], np.int64)),
            tuple(
                KeptOrder(epoch, found.num_taken, packed(found.order_N))
                for epoch, found in sorted(self._arranged.items())
            ),
        )

    def restore(self, state: CurriculumState) -> None:
        """Goes on from a checkpoint. Raises ValueError where it is of another number of tasks."""
        if state.num_tasks != self._first.length:
            raise ValueError(
                f"the checkpoint has the pass rates and orders of {state.num_tasks:,} tasks, and "
                f"the environment has {self._first.length:,} now: give it the data that the run "
                "began with, or begin another run"
            )
        tasks = unpacked(state.tasks, np.int64).tolist()
        columns = (
            unpacked(state.rates, np.float64).tolist(),
            unpacked(state.epochs, np.int64).tolist(),
            unpacked(state.rested, np.int64).tolist(),
        )
        known = map(PassRate, *columns)
        self._known = dict(zip(tasks, known, strict=True))
        self._arranged = {
            kept.epoch: Arrangement(unpacked(kept.order, np.int32), kept.num_taken)
            for kept in state.orders
        }

    def _measured(self, groups: Sequence[GroupSummary]) -> dict[str, float]:
        if not groups:
            return {}
        epoch = max(group.id.epoch for group in groups)
        share = 1 - self.num_places(epoch) / self._first.length
        metrics = {EPOCH: float(epoch), SKIPPED: share}
        tasks = [self.index(*group.id[:2]) for group in groups]
        before = [self._known[task].rate for task in tasks if task in self._known]
        return metrics | ({BEFORE: math.fsum(before) / len(before)} if before else {})

    def _why_skipped(self, task: int) -> str:
        last, settings = self._known[task], self._settings
        return (
            f"task {task}: its pass rate in epoch {last.epoch}, {last.rate:.3g}, is not within "
            f"{settings.low:g} to {settings.high:g}"
        )


def pass_rate(group: GroupSummary, component: str) -> float | None:
    """The share of `group`'s samples that are right by `component`, of those that have it; None
    where none has."""
    values = group.components.get(component)
    known = values[~np.isnan(values)] if values is not None else np.empty(0)
    return float((known > RIGHT).mean()) if len(known) else None


def _tickets(num_tasks: int, epoch: int, seed: int) -> npt.NDArray[np.float64]:
    """A random number for each task, float64[N], the same on every machine and for every version of
    Python and numpy: that much is promised of `random.random`."""
    draw = random.Random(f"curriculum/{seed}/{epoch}").random
    return np.array([draw() for _ in range(num_tasks)])
