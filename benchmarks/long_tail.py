"""What the longest samples cost a synchronous step, and what each way of dealing with them gains.

One real run (`manta train`) for each setting and round: a simulated engine inside the real rollout
worker, behind the real router and environment worker, the real loop, publish and learner rank, on
the cluster of `benchmarks.simulated_cluster`. Half of the log-length's variance is the task's. The
first steps, an epoch over all tasks, show `longest_first` their lengths and do not count. Seeds are
the same in every setting, so all but the race see the same tasks and draw the same lengths.

Beside seconds and idle rows stands what is paid: the mean length that trains, in a share of the
plain one (who ends first is short, and a cap cuts), and how stale groups become.

    taskset -c 2,3 python -m benchmarks.long_tail [--rounds N] [--keep FOLDER]

Runs that stand finished in the folder are not made again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import yaml

from benchmarks import manta_side
from benchmarks import simulated_cluster as cluster
from benchmarks.report import Figure, write
from manta.envs.records import Json
from manta.orchestrator.ledger import Entry, read_ledger
from manta.orchestrator.metrics import (
    IDLE_SHARE,
    LENGTH,
    MAX_STALENESS,
    MetricsLine,
    read_metrics,
)

CLAIM = "Synchronous steps on a long tail of lengths, simulated engine in the real actors and loop"
EPOCH, MEASURED = 4, 8
"""Steps that do not count, and steps that do."""
PLAIN = "plain order"
SETTINGS: Mapping[str, dict[str, Json]] = {
    PLAIN: {},
    "longest first": {"dispatch": "longest_first"},
    "redundant groups": {"oversample": 1.25, "when_too_old": "drop_and_replace"},
    "redundant samples": {"redundant_samples": 2},
    "cap of 4 medians": {"cap": {"medians": 4.0}},
    "carried over": {"oversample": 1.25, "overtaken": "carry_over", "max_staleness": 1},
}
BARS: Mapping[str, tuple[float, float]] = {
    "longest first": (1.0, 1.05),
    "redundant samples": (1.15, 1.25),
    "cap of 4 medians": (1.25, 1.4),
    "carried over": (1.35, 1.5),
}
"""Bar and aim of a step's seconds in plain order over those of the setting. Redundant groups have
none: with four times as many samples as rows, what they overtake has mostly not begun."""


@dataclass(frozen=True)
class Measured:
    """Of one run, by step of those that count: seconds, and share of row-seconds without a sample.
    `lost` counts groups that were dropped for another reason than that a race overtook them."""

    seconds: tuple[float, ...]
    idle: tuple[float, ...]
    mean_length: float
    max_staleness: float
    lost: int


def run_file(name: str, folder: Path, rollout: Mapping[str, Json]) -> dict[str, Json]:
    return {
        "run": {"name": name, "seed": 0, "dir": str(folder)},
        "model": {
            "build": {"layers": 1, "width": 8, "heads": 2, "mlp_width": 16},
            "tokenizer": "char:0123456789+=",
            "context": cluster.CAP + 16,
        },
        "env": {"name": "arithmetic", "digits": 2, "eval_size": 10_000 - EPOCH * cluster.PROMPTS},
        "reward": {
            "formula": "value",
            "components": {"value": {"reward": "length", "target": 0, "limit": cluster.CAP}},
        },
        "stages": [
            {
                "name": "rl",
                "algorithm": {
                    "name": "grpo",
                    "samples_per_prompt": cluster.SAMPLES,
                    "kl": {"coef": 0.0},
                },
                "steps": EPOCH + MEASURED,
                "prompts_per_step": cluster.PROMPTS,
            }
        ],
        "rollout": {
            "engine": "simulated",
            "max_rows": cluster.ROWS,
            "max_new_tokens": cluster.CAP,
            "simulated": {
                "tokens_per_second": cluster.TOKENS_PER_SECOND,
                "length_median": float(cluster.MEDIAN),
                "length_sigma": cluster.SIGMA,
                "length_prompt_share": 0.5,
            },
            **rollout,
        },
        "learner": {
            "backend": "benchmarks.timed_backend:TimedBackend",
            "learning_rate": 1e-6,
            "threads": 1,
            "tokens_per_micro_batch": 16384,
        },
        "checkpoint": {"every_steps": 1000},
        # The simulated engine has no model: its log-probs cannot be the learner's.
        "publish": {"probe_tolerance": 1000.0},
    }


def measured(lines: Sequence[MetricsLine], entries: Sequence[Entry]) -> Measured:
    """Raises ValueError where steps are missing."""
    if len(lines) != EPOCH + MEASURED:
        raise ValueError(f"{len(lines)} lines of metrics, not {EPOCH + MEASURED}: the run ended")
    counted = lines[EPOCH:]
    return Measured(
        seconds=tuple(line.values["time/step"] for line in counted),
        idle=tuple(line.values[IDLE_SHARE] for line in counted),
        mean_length=sum(line.values[LENGTH] for line in counted) / MEASURED,
        max_staleness=max(line.values[MAX_STALENESS] for line in counted),
        lost=sum(e.outcome == "dropped" and not e.reason.startswith("overtaken") for e in entries),
    )


def fastest(rounds: Sequence[Measured]) -> tuple[float, float]:
    """Seconds a step and idle share, each step as in the round where it was fastest: a step has the
    same work in every round (nearly so where what finishes first decides), and what else the
    machine does can only add to it."""
    best = [
        min(zip(seconds, idle, strict=True))
        for seconds, idle in zip(
            zip(*(m.seconds for m in rounds), strict=True),
            zip(*(m.idle for m in rounds), strict=True),
            strict=True,
        )
    ]
    total = sum(seconds for seconds, _ in best)
    return total / len(best), sum(seconds * idle for seconds, idle in best) / total


def figures(found: Mapping[str, Sequence[Measured]]) -> list[Figure]:
    """`found`: by setting, one for each round. Samples are whole rounds, stalls and all."""
    made = []
    by_round = {name: [fastest([m]) for m in rounds] for name, rounds in found.items()}
    for name, rounds in found.items():
        seconds, idle = fastest(rounds)
        raw = [list(each) for each in zip(*by_round[name], strict=True)]
        made += [
            Figure(f"{name}: step", seconds, "s", None, None, "lower", raw[0]),
            Figure(f"{name}: idle share of rows", idle, "", None, None, "lower", raw[1]),
        ]
    plain = found[PLAIN]
    for name in [name for name in found if name != PLAIN]:
        bar, aim = BARS.get(name, (None, None))
        ratio = fastest(plain)[0] / fastest(found[name])[0]
        pairs = [
            (own[0], other[0]) for own, other in zip(by_round[name], by_round[PLAIN], strict=True)
        ]
        made.append(Figure(f"{name} over plain", ratio, "x", bar, aim, "higher", pairs))
    for name in [name for name in found if name != PLAIN]:
        shares = [m.mean_length / p.mean_length for m, p in zip(found[name], plain, strict=True)]
        text = f"{name}: mean length that trains, over plain"
        made.append(Figure(text, median(shares), "x", None, None, "higher", shares))
    over = [
        m.max_staleness - float(str(SETTINGS[name].get("max_staleness", 0)))
        for name, rounds in found.items()
        for m in rounds
    ]
    lost = [float(m.lost) for rounds in found.values() for m in rounds]
    return [
        *made,
        Figure("staleness past the setting", max(over), "steps", 0, 0, "lower", over),
        Figure("groups lost", sum(lost), "groups", 0, 0, "lower", lost),
    ]


def measure(folder: Path, name: str, number: int) -> Measured:
    """Of the run of a setting in a round, which is made where it does not stand in `folder`."""
    title = f"{name.replace(' ', '-')}-{number}"
    directory = folder / title
    if not (directory / "summary.json").exists():
        shutil.rmtree(directory, ignore_errors=True)
        path = folder / f"{title}.yaml"
        content = run_file(title, folder, SETTINGS[name])
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        manta_side.train(path)
    entries = read_ledger(directory / "ledger.jsonl")
    return measured(read_metrics(directory / "metrics.jsonl"), entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=None, help="folder to leave the runs in")
    arguments = parser.parse_args()
    found: dict[str, list[Measured]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory(prefix="long-tail-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(arguments.rounds):
            for name in list(SETTINGS)[:: -1 if number % 2 else 1]:
                found[name].append(measure(folder, name, number))
                print(name, number, found[name][-1], flush=True)
    cores = len(os.sched_getaffinity(0))
    write("long_tail", CLAIM, figures(found), ["ray", "torch", "numpy"], cores)


if __name__ == "__main__":
    main()
