"""What the orchestrator costs at 1,000 engines: driver and router time a group, and memory.

In virtual time: the very feed, supply, loop, ledger, recorder, routing and leases, over engines and
a learner of which only the time passes (`manta.orchestrator.simulation`). All of it runs in one
process; what engines, environment workers and learner would do there is told apart and left out,
and so is the router, an actor of its own in a real run. Everything else counts as the driver's, the
event loop and the garbage collector included, but no call over Ray.

- wide: 100,352 episodes in flight (staleness 1, steps of 3,136 groups of 16), 60 steps.
- long: 10,000 steps of 32 groups of 16, in which all engines are published to at every step. Steps
  as wide as those above would take hours, so here 1,024 episodes are in flight.

Flat is the last fifth of the steps against the first (after one that does not count). Of driver
time a group, in units of what the simulated world took meanwhile: that does the same work all the
while, and so tells how fast the machine was. Of memory: resident bytes, and objects that the
garbage collector sees.

Beside it stands a real run with real actors on one Ray (`manta train`): the driver's processor time
a group with 50 engines, and with 4.

    taskset -c 2,3 python -m benchmarks.scale_sim [--only wide|long|actors]
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import yaml

from benchmarks import engine_count
from benchmarks.report import Figure, write
from benchmarks.stopwatch import Stopwatch
from manta.actors.engine_state import Word
from manta.actors.lanes import Admission, BlockSummary
from manta.actors.leases import Ask, Lease, Ticket
from manta.actors.step_work import StepReport
from manta.algorithms.presets import PRESETS
from manta.envs.records import Json
from manta.envs.sources.order import EpochOrder
from manta.orchestrator import run_file as run_files
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.feed import Feed
from manta.orchestrator.ledger import Ledger
from manta.orchestrator.progress import Progress
from manta.orchestrator.publish import Published
from manta.orchestrator.recorder import Recorder
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.simulation import virtual_clock
from manta.orchestrator.simulation.engine import MadeRow, PacedEngine
from manta.orchestrator.simulation.lengths import LognormalLengths
from manta.orchestrator.simulation.speeds import EngineSpeed, LearnerSpeed, Overheads, Speeds
from manta.orchestrator.simulation.stage import SimulatedStage, StageParts
from manta.orchestrator.simulation.world import (
    DrawnGroup,
    SimulatedLearner,
    SimulatedWorld,
    WorldShape,
)
from manta.orchestrator.supply import BlockRef, Finished
from manta.orchestrator.wait import Waits

CLAIM = "The orchestrator at 1,000 engines: processor time a group and memory, in virtual time"
ENGINES, ROWS, SAMPLES, STALENESS = 1_000, 128, 16, 1
MOST_TOKENS = 2_048
BAR, AIM = 1.0, 0.5
BAR_FLAT = 1.15
BAR_MEMORY = 1.05
SPEEDS = Speeds(
    EngineSpeed(base=0.01, per_row=1e-5), LearnerSpeed(1.0, 0.0), Overheads(publish=0.5)
)
WATCH = Stopwatch()
WORLD, ROUTER = "world", "router"


@dataclass(frozen=True)
class Scale:
    """Steps of `prompts` groups; looked at every `every` of them."""

    name: str
    prompts: int
    steps: int
    every: int
    groups_per_call: int


SCALES = (Scale("wide", 3_136, 60, 6, 4), Scale("long", 32, 10_000, 1_000, 4))


@dataclass(frozen=True)
class Look:
    """Counters at the end of step `step`: processor seconds of all, of world and of router."""

    step: int
    total: float
    world: float
    router: float
    rss: int
    objects: int


@dataclass
class Looks:
    """`most`: the largest number of episodes that were seen in flight."""

    groups: int
    seen: list[Look] = field(default_factory=list)
    most: int = 0

    def take(self, step: int) -> None:
        gc.collect()
        memory = psutil.Process().memory_info().rss
        counted = Look(
            step,
            time.process_time(),
            WATCH.seconds[WORLD],
            WATCH.seconds[ROUTER],
            memory,
            len(gc.get_objects()),
        )
        self.seen.append(counted)

    def windows(self) -> list[tuple[float, float, float]]:
        """Milliseconds a group of driver, router and world, between one look and the next."""
        found = []
        for one, other in zip(self.seen, self.seen[1:], strict=False):
            groups = self.groups * (other.step - one.step)
            world, router = other.world - one.world, other.router - one.router
            driver = other.total - one.total - world - router
            found.append((1e3 * driver / groups, 1e3 * router / groups, 1e3 * world / groups))
        return found


class TimedEngine(PacedEngine):
    def _go_on(self) -> None:
        with WATCH.part(WORLD):
            super()._go_on()


class TimedWorld(SimulatedWorld):
    """Charges the world with its work, and the router with its own."""

    episodes = most = 0

    def run_block(
        self, lane: str, admissions: Sequence[Admission]
    ) -> Coroutine[Any, Any, tuple[BlockRef, BlockSummary]]:
        return self._counted(len(admissions), super().run_block(lane, admissions))

    async def _counted(
        self, groups: int, work: Coroutine[Any, Any, tuple[BlockRef, BlockSummary]]
    ) -> tuple[BlockRef, BlockSummary]:
        self.episodes += groups * SAMPLES
        self.most = max(self.most, self.episodes)
        try:
            return await WATCH.timed(WORLD, work)
        finally:
            self.episodes -= groups * SAMPLES

    async def _call(
        self, worker: int, groups: Sequence[DrawnGroup], rank: tuple[int, ...]
    ) -> list[list[MadeRow]]:
        return await WATCH.timed(WORLD, super()._call(worker, groups, rank))

    async def publish(self, report: StepReport) -> Published:
        return await WATCH.timed(WORLD, super().publish(report))

    async def _acquire(self, ask: Ask) -> Lease:
        return await WATCH.timed(ROUTER, self.routing.acquire(ask))

    def _tell(self, engine: str, word: Word) -> None:
        with WATCH.part(ROUTER):
            self.routing.tell(engine, word)

    def _release(self, ticket: Ticket) -> None:
        with WATCH.part(ROUTER):
            self.routing.release(ticket)

    async def _unfinished(self, engine: str) -> Mapping[Ticket, int]:
        with WATCH.part(WORLD):
            return await super()._unfinished(engine)


async def simulate(folder: Path, scale: Scale) -> Looks:
    shape = WorldShape(
        ENGINES, ROWS, ROWS + ROWS // 4, SAMPLES, MOST_TOKENS, environment_workers=64
    )
    world = TimedWorld(shape, SPEEDS, LognormalLengths(256, 400.0, 0.7), TimedEngine)
    learner = SimulatedLearner(SPEEDS.learner)
    feed: Feed[Finished] = Feed(
        EpochOrder(1_000_000, 0), (STALENESS + 1) * scale.prompts, keeps_place=False
    )
    stage = SimulatedStage(
        feed,
        PRESETS["grpo"],
        scale.prompts,
        scale.steps,
        scale.groups_per_call,
        AgePolicy(STALENESS),
    )
    recorder = real_recorder(folder)
    looks = Looks(scale.prompts)

    async def after(step: int) -> None:
        looks.most = world.most
        recorder.routing(world.routing.figures())
        if step == 1 or step % scale.every == 0:
            looks.take(step)

    ledger = Ledger(folder / "ledger.jsonl")
    parts = StageParts(stage, ledger, world, learner, world.publish, recorder, after)
    recorder.enter_stage(stage.name, scale.steps, feed, Progress(stage.name))
    await parts.run()
    ledger.close()
    return looks


def real_recorder(folder: Path) -> Recorder:
    """That of a run, in `folder`: metrics, events, timeline and display."""
    run_file: dict[str, Json] = {
        "run": {"name": "scale", "dir": str(folder)},
        "model": {
            "build": {"layers": 1, "width": 8, "heads": 2, "mlp_width": 16},
            "tokenizer": "byte",
        },
        "env": {"name": "arithmetic"},
        "reward": {"formula": "correct", "components": {"correct": "exact"}},
        "stages": [{"name": "rl", "algorithm": "grpo", "steps": 1, "prompts_per_step": 1}],
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run_file), encoding="utf-8")
    loaded = run_files.load(str(path), ())
    directory = RunDirectory.of(loaded)
    directory.create()
    return Recorder(loaded, {}, directory, Waits(), 0)


def measure(scale: Scale) -> Looks:
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        return virtual_clock.run(simulate(Path(folder), scale))


def figures_of(scale: Scale, looks: Looks) -> list[Figure]:
    windows = looks.windows()
    drivers = [driver for driver, _, _ in windows]
    flat = growth([(driver, world) for driver, _, world in windows])
    rss = [look.rss / 2**20 for look in looks.seen]
    objects = [float(look.objects) for look in looks.seen]
    name = f"{scale.name}, {scale.steps:,} steps of {scale.prompts:,} groups"
    held = scale.name == "long"
    return [
        Figure(f"{name}: episodes in flight", looks.most, "", None, None, "higher", []),
        Figure(f"{name}: driver", median(drivers), "ms/group", BAR, AIM, "lower", drivers),
        Figure(
            f"{name}: driver, end over start, in units of the world's time",
            flat,
            "x",
            BAR_FLAT,
            1.0,
            "lower",
            [(driver, world) for driver, _, world in windows],
        ),
        Figure(
            f"{name}: router",
            median(router for _, router, _ in windows),
            "ms/group",
            BAR,
            AIM,
            "lower",
            [router for _, router, _ in windows],
        ),
        Figure(
            f"{name}: simulated world, not counted",
            median(world for _, _, world in windows),
            "ms/group",
            None,
            None,
            "lower",
            [world for _, _, world in windows],
        ),
        _memory(f"{name}: resident memory", rss, "MiB", held),
        _memory(f"{name}: objects", objects, "", held),
    ]


def growth(windows: Sequence[tuple[float, float]]) -> float:
    """How much more the driver takes in the last fifth of `windows` than in the first, each as
    (driver's time, world's time)."""
    shares = [driver / world for driver, world in windows]
    fifth = max(1, len(shares) // 5)
    return fmean(shares[-fifth:]) / fmean(shares[:fifth])


def _memory(name: str, samples: Sequence[float], unit: str, is_held: bool) -> Figure:
    """The end over the look after the first tenth, when caches and buffers are full."""
    growth = samples[-1] / samples[1]
    bar, aim = (BAR_MEMORY, 1.0) if is_held else (None, None)
    told = f"{name}, {samples[-1]:,.0f} {unit} at the end, over the start".replace("  ", " ")
    return Figure(told, growth, "x", bar, aim, "lower", samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--only", default=None, help="wide, long or actors; writes no result")
    only = parser.parse_args().only
    found: list[Figure] = []
    for scale in SCALES:
        if only in (None, scale.name):
            found += figures_of(scale, measure(scale))
            print(*found[-7:], sep="\n", flush=True)
    if only in (None, "actors"):
        found += engine_count.figures()
        print(*found[-3:], sep="\n", flush=True)
    if only is None:
        cores = len(os.sched_getaffinity(0))
        write("scale_sim", CLAIM, found, ["ray", "torch", "numpy"], cores)


if __name__ == "__main__":
    main()
