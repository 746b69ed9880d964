"""Every preset on one small task: from one warm start, as many samples each, on three seeds.

A supervised warm start on sums of two digits, then a stage for every preset, each from the weights
of the warm start and on samples of its own; a few presets share a run, and what a kept folder holds
is not run again. Losses of pairs and labels learn from fresh samples too. What else a preset is
given, and which have no stage, is in `benchmarks.algorithms_runs`. Nothing is tuned by preset: what
the table says under a learning rate that serves GRPO well says little of which one is best, and
much of whether each of them learns. The samples are those that train: a preset that leaves groups
out draws others in their place. pass@8 is of held-out prompts at temperature 1, entropy and length
are those of the last tenth of the training steps.

    taskset -c 2,3 python -m benchmarks.algorithms [--seeds N] [--steps N] [--only PRESET ...]
        [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mean

import yaml

from benchmarks import manta_side
from benchmarks.algorithms_picture import draw
from benchmarks.algorithms_runs import exam_name, presets, run_file, stage_name
from benchmarks.report import RESULTS, Figure, write
from manta.orchestrator.metrics import (
    ACCURACY,
    ENTROPY,
    LENGTH,
    SAMPLES,
    MetricsLine,
    read_metrics,
)
from manta.orchestrator.outcomes import FILTERED_SHARE, PASS_AT_1

CLAIM = "Every preset gains held-out accuracy over its warm start, on every seed, equal samples"
LEAST_GAIN = 0.1
PRESETS_PER_RUN = 12
PASS_AT_8 = "eval/pass_at/8"
FEW_STEPS = 5


@dataclass(frozen=True, slots=True)
class Learnt:
    """One stage. `samples_needed` is how many it drew, those that were filtered among them, until
    those of `FEW_STEPS` were right by `LEAST_GAIN` more often than those of the first ones. NaN
    where the run does not know."""

    before: float
    after: float
    pass_at_8: float
    entropy: float
    length: float
    samples_needed: float
    seconds: float

    @property
    def gain(self) -> float:
        return self.after - self.before


def learn(folder: Path, seed: int, steps: int, names: Sequence[str]) -> dict[str, Learnt]:
    """By preset, those that `folder` holds no finished run of made now. Raises RuntimeError where a
    run fails."""
    found = finished(folder, seed)
    missing = [name for name in names if name not in found]
    for start in range(0, len(missing), PRESETS_PER_RUN):
        together = missing[start : start + PRESETS_PER_RUN]
        title = f"seed-{seed}-{together[0].replace('_', '-')}"
        shutil.rmtree(folder / title, ignore_errors=True)
        path = folder / f"{title}.yaml"
        content = run_file(title, folder, seed, steps, together)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        manta_side.train(path)
        found = finished(folder, seed)
        for name in together:
            print(f"seed {seed}, {name}: {found[name]}", flush=True)
    return {name: found[name] for name in names}


def finished(folder: Path, seed: int) -> dict[str, Learnt]:
    """Of every preset in the runs of `folder` that ended."""
    found = {}
    for summary in sorted(folder.glob(f"seed-{seed}-*/summary.json")):
        lines = read_metrics(summary.with_name("metrics.jsonl"))
        stages = {line.stage for line in lines}
        for name in presets():
            if stage_name(name) in stages:
                found[name] = learnt(name, lines)
    return found


def learnt(preset: str, lines: Sequence[MetricsLine]) -> Learnt:
    """What the lines of its stage and of its exam say."""
    own = [line.values for line in lines if line.stage == stage_name(preset)]
    [exam] = [line.values for line in lines if line.stage == exam_name(preset)]
    accuracies = [values[ACCURACY] for values in own if ACCURACY in values]
    trained = [values for values in own if "time/step" in values]
    last = trained[-max(1, len(trained) // 10) :]

    def at_last(name: str) -> float:
        return mean(values.get(name, math.nan) for values in last)

    return Learnt(
        accuracies[0],
        accuracies[-1],
        exam[PASS_AT_8],
        at_last(ENTROPY),
        at_last(LENGTH),
        _samples_until(trained),
        sum(values["time/step"] for values in trained),
    )


def _samples_until(steps: Sequence[Mapping[str, float]]) -> float:
    drawn = list(
        accumulate(
            values.get(SAMPLES, math.nan) / (1 - values.get(FILTERED_SHARE, 0.0))
            for values in steps
        )
    )
    right = [values.get(PASS_AT_1, math.nan) for values in steps]
    for end in range(FEW_STEPS, len(steps) + 1):
        if mean(right[end - FEW_STEPS : end]) >= mean(right[:FEW_STEPS]) + LEAST_GAIN:
            return drawn[end - 1]
    return math.nan


def figures(found: Mapping[str, Sequence[Learnt]]) -> list[Figure]:
    """`found` by preset, in the order of the seeds."""
    made = []
    for name, runs in found.items():
        gains = [run.gain for run in runs]
        made += [
            Figure(f"{name}: least gain", min(gains), "", LEAST_GAIN, None, "higher", gains),
            _mean(name, "accuracy", [run.after for run in runs]),
            _mean(name, "pass@8", [run.pass_at_8 for run in runs]),
            _mean(name, "entropy", [run.entropy for run in runs], "nats"),
            _mean(name, "length", [run.length for run in runs], "tokens"),
            _mean(name, "samples to +0.1", [run.samples_needed for run in runs]),
            _mean(name, "time", [run.seconds for run in runs], "s"),
        ]
    return made


def markdown(found: Mapping[str, Sequence[Learnt]]) -> str:
    """A table of means over the seeds, the best accuracy first. A cell stays empty where one of the
    seeds did not get there."""

    def line(name: str, runs: Sequence[Learnt]) -> str:
        gains = [run.gain for run in runs]
        cells = [
            f"`{name}`",
            f"{mean(run.after for run in runs):.1%}",
            f"{100 * min(gains):+.1f} to {100 * max(gains):+.1f}",
            _said(mean(run.pass_at_8 for run in runs), ".1%"),
            _said(mean(run.entropy for run in runs), ".2f"),
            _said(mean(run.length for run in runs), ".2f"),
            _said(mean(run.samples_needed for run in runs), ",.0f"),
            f"{mean(run.seconds for run in runs):.0f}",
        ]
        return f"| {' | '.join(cells)} |"

    best_first = sorted(found, key=lambda name: -mean(run.after for run in found[name]))
    head = [
        "| preset | accuracy | gain, points | pass@8 | entropy | tokens | samples to +10 | s |",
        f"|{' --- |' * 8}",
    ]
    return "\n".join([*head, *(line(name, found[name]) for name in best_first)]) + "\n"


def _said(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _mean(name: str, what: str, values: Sequence[float], unit: str = "") -> Figure:
    known = [None if math.isnan(value) else value for value in values]
    value = None if None in known else mean(values)
    return Figure(f"{name}: {what}", value, unit, None, None, "higher", known)


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="of each preset")
    parser.add_argument("--only", nargs="+", choices=presets(), default=presets())
    parser.add_argument("--keep", type=Path, default=None, help="folder to leave the runs in")
    arguments = parser.parse_args()
    found: dict[str, list[Learnt]] = {name: [] for name in arguments.only}
    with tempfile.TemporaryDirectory(prefix="algorithms-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(arguments.seeds):
            for name, each in learn(folder, seed, arguments.steps, arguments.only).items():
                found[name].append(each)
    write(
        "algorithms",
        CLAIM,
        figures(found),
        ["ray", "torch", "transformers"],
        len(os.sched_getaffinity(0)),
    )
    (RESULTS / "algorithms.md").write_text(markdown(found), encoding="utf-8")
    draw(
        {
            name: [(run.before, run.after, run.pass_at_8, run.entropy, run.seconds) for run in runs]
            for name, runs in found.items()
        },
        RESULTS / "algorithms.png",
    )


if __name__ == "__main__":
    main()
