"""What asynchrony gains: samples per second at staleness 1, 2 and 4 against synchronous training.

One real run (`manta train`) whose stages are the settings in turn, several rounds of them:
simulated engines inside the real rollout worker, behind the real router and environment worker, the
real loop, publish and learner rank, whose update takes as long as the engine needs for a step's
tokens when no row is idle (`benchmarks.simulated_cluster`). The first steps of a stage fill the
pipeline and do not count. Checked of every stage: nothing is dropped, no group is staler than the
setting, and the lengths trained on are those that the seeds of the admitted samples draw.

    taskset -c 2,3 python -m benchmarks.async_speedup [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

from benchmarks import manta_side
from benchmarks import simulated_cluster as cluster
from benchmarks.report import Figure, write
from manta.actors.engines.settings import SimulatedSettings
from manta.actors.engines.simulated import sampled_length
from manta.envs.records import Json
from manta.envs.seeds import sample_seed
from manta.envs.trajectory_files import TrajectoryReader
from manta.orchestrator.ledger import read_ledger
from manta.orchestrator.metrics import MAX_STALENESS, MetricsLine, read_metrics

CLAIM = "Asynchronous against synchronous training, simulated engines in the real actors and loop"
NAME = "async"
SEED = 0
STEPS: Mapping[int, tuple[int, int]] = {0: (1, 7), 1: (3, 8), 2: (4, 9), 4: (6, 10)}
"""By staleness: steps that fill the pipeline, and steps that are measured."""
BARS: Mapping[int, tuple[float, float]] = {1: (1.8, 1.94), 2: (2.5, 2.75), 4: (3.1, 3.4)}
"""By staleness: bar and aim of the speed-up."""
LENGTHS = SimulatedSettings(cluster.TOKENS_PER_SECOND, cluster.MEDIAN, cluster.SIGMA)


@dataclass(frozen=True)
class Cell:
    """One stage of the run: a setting in a round, with rewards of either kind."""

    staleness: int
    round: int
    has_slow_rewards: bool

    @property
    def name(self) -> str:
        kind = "slow" if self.has_slow_rewards else "fast"
        return f"{kind}-{self.round}-staleness-{self.staleness}"

    @property
    def steps(self) -> int:
        return sum(STEPS[self.staleness])

    def stage(self) -> dict[str, Json]:
        slow: Json = {"value": {"reward": "benchmarks.slow_reward:SlowReward"}}
        fast: Json = {"value": {"reward": "length", "target": 0, "limit": cluster.CAP}}
        return {
            "name": self.name,
            "algorithm": {
                "name": "grpo",
                "samples_per_prompt": cluster.SAMPLES,
                "kl": {"coef": 0.0},
            },
            "reward": {"formula": "value", "components": slow if self.has_slow_rewards else fast},
            "steps": self.steps,
            "prompts_per_step": cluster.PROMPTS,
            "max_staleness": self.staleness,
        }


@dataclass(frozen=True)
class Measured:
    """`unlike` counts samples whose length is not the one that its seed draws, or that are missing
    or too many."""

    samples_per_second: float
    max_staleness: float
    dropped: int
    unlike: int


def cells(rounds: int, slow_rounds: int) -> list[Cell]:
    """Interleaved; every second round goes through the settings backwards."""
    found = []
    for kind, count in ((False, rounds), (True, slow_rounds)):
        for number in range(count):
            settings = list(STEPS)[:: -1 if number % 2 else 1]
            found += [Cell(staleness, number, kind) for staleness in settings]
    return found


def write_run_file(path: Path, stages: Sequence[Cell]) -> None:
    run_file: dict[str, Json] = {
        "run": {"name": NAME, "seed": SEED, "dir": str(path.parent)},
        "model": {
            "build": {"layers": 1, "width": 8, "heads": 2, "mlp_width": 16},
            "tokenizer": "char:0123456789+=",
            "context": cluster.CAP + 16,
        },
        "env": {"name": "arithmetic", "digits": 2},
        "stages": [cell.stage() for cell in stages],
        "rollout": {
            "engine": "simulated",
            "max_rows": cluster.ROWS,
            "max_new_tokens": cluster.CAP,
            "simulated": {
                "tokens_per_second": LENGTHS.tokens_per_second,
                "length_median": LENGTHS.length_median,
                "length_sigma": LENGTHS.length_sigma,
            },
        },
        "learner": {
            "backend": "benchmarks.timed_backend:TimedBackend",
            "learning_rate": 1e-6,
            "threads": 1,
            "tokens_per_micro_batch": 16384,
        },
        "checkpoint": {"every_steps": 1000},
        # The simulated engine has no model: its log-probs cannot be the learner's. The receipt, a
        # hash of the bytes, is checked as ever.
        "publish": {"probe_tolerance": 1000.0},
    }
    path.write_text(yaml.safe_dump(run_file, sort_keys=False), encoding="utf-8")


def measure(run_dir: Path, stages: Sequence[Cell]) -> dict[Cell, Measured]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    outcomes = read_ledger(run_dir / "ledger.jsonl")
    lengths = trained_lengths(run_dir)
    found = {}
    step = 0
    for cell in stages:
        of_stage = [line for line in lines if line.stage == cell.name]
        lost = [e for e in outcomes if e.stage == cell.name and e.outcome != "trained"]
        trained = Counter(
            length for at in range(step + 1, step + cell.steps + 1) for length in lengths[at]
        )
        drawn = drawn_lengths(cell)
        step += cell.steps
        found[cell] = Measured(
            rate(cell, of_stage),
            max(line.values[MAX_STALENESS] for line in of_stage),
            len(lost),
            ((trained - drawn) + (drawn - trained)).total(),
        )
    return found


def rate(cell: Cell, lines: Sequence[MetricsLine]) -> float:
    """Samples a second over the measured steps."""
    filling, measured = STEPS[cell.staleness]
    assert len(lines) == cell.steps, f"{cell.name} has {len(lines)} lines of metrics"
    seconds = lines[-1].seconds - lines[filling - 1].seconds
    return measured * cluster.PROMPTS * cluster.SAMPLES / seconds


def trained_lengths(run_dir: Path) -> dict[int, list[int]]:
    """Completion lengths by step, as the learner rank wrote its trajectories."""
    reader = TrajectoryReader(run_dir / "trajectories")
    found: dict[int, list[int]] = {}
    for index, entry in enumerate(reader.entries):
        group = reader.group(index)
        found.setdefault(entry.step, []).extend(
            int(trajectory.loss_mask.sum()) for trajectory in group.trajectories
        )
    return found


def drawn_lengths(cell: Cell) -> Counter[int]:
    """The lengths of the samples that are admitted first, by their seeds."""
    places = range(cell.steps * cluster.PROMPTS)
    seeds = (
        sample_seed(SEED, f"{cell.name}/train", 0, place, sample)
        for place in places
        for sample in range(cluster.SAMPLES)
    )
    return Counter(min(cluster.CAP, sampled_length(LENGTHS, seed)) for seed in seeds)


def figures(found: Mapping[Cell, Measured]) -> list[Figure]:
    made = []
    for is_slow in (False, True):
        of_kind = {cell: m for cell, m in found.items() if cell.has_slow_rewards == is_slow}
        if of_kind:
            made += _table(of_kind, f"rewards of 0 to {cluster.REWARD_SECONDS:g} s, " * is_slow)
    return made


def _table(found: Mapping[Cell, Measured], kind: str) -> list[Figure]:
    by_setting: dict[int, list[float]] = {staleness: [] for staleness in STEPS}
    for cell, measured in sorted(found.items(), key=lambda item: item[0].round):
        by_setting[cell.staleness].append(measured.samples_per_second)
    made = []
    for staleness, rates in by_setting.items():
        name = f"{kind}staleness {staleness}"
        unit = "samples/s"
        made.append(Figure(name, median(rates), unit, None, None, "higher", rates))
    synchronous = by_setting[0]
    for staleness, (bar, aim) in BARS.items():
        pairs = list(zip(by_setting[staleness], synchronous, strict=True))
        ratio = median(by_setting[staleness]) / median(synchronous)
        name = f"{kind}staleness {staleness} over synchronous"
        made.append(
            Figure(name, ratio, "x", None if kind else bar, None if kind else aim, "higher", pairs)
        )
    over = [m.max_staleness - cell.staleness for cell, m in found.items()]
    dropped = [float(m.dropped) for m in found.values()]
    unlike = [float(m.unlike) for m in found.values()]
    return [
        *made,
        Figure(f"{kind}staleness past the setting", max(over), "steps", 0, 0, "lower", over),
        Figure(f"{kind}groups not trained", sum(dropped), "groups", 0, 0, "lower", dropped),
        Figure(f"{kind}lengths unlike the drawn", sum(unlike), "samples", 0, 0, "lower", unlike),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--slow-rounds", type=int, default=1, help="with rewards of 0 to 2 s")
    parser.add_argument("--keep", type=Path, default=None, help="folder to leave the run in")
    arguments = parser.parse_args()
    stages = cells(arguments.rounds, arguments.slow_rounds)
    with tempfile.TemporaryDirectory(prefix="async-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run_file = folder / "run.yaml"
        write_run_file(run_file, stages)
        manta_side.train(run_file)
        found = measure(folder / NAME, stages)
    cores = len(os.sched_getaffinity(0))
    write("async_speedup", CLAIM, figures(found), ["ray", "torch", "numpy"], cores)


if __name__ == "__main__":
    main()
