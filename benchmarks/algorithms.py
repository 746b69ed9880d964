"""Every preset on one small task: from one warm start, as many samples each, on three seeds.

A run a seed: a supervised warm start on sums of two digits, then a stage for every preset that
learns from its own samples, each from the weights of the warm start. Nothing is tuned by preset:
what the table says under a learning rate that serves GRPO well says little of which one is best,
and much of whether each of them learns. pass@8 and the entropy are those of the last tenth of the
training steps.

    taskset -c 2,3 python -m benchmarks.algorithms [--seeds N] [--steps N] [--only PRESET ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import yaml

from benchmarks import manta_side
from benchmarks.algorithms_picture import draw
from benchmarks.report import RESULTS, Figure, write
from manta.algorithms.presets import PRESETS
from manta.envs.records import Json
from manta.orchestrator.metrics import ACCURACY, ENTROPY, MetricsLine, read_metrics

CLAIM = "Every preset gains held-out accuracy over its warm start, on every seed, equal samples"
LEAST_GAIN = 0.1
WARM = "warm-start"
SAMPLES_PER_STEP = 1024
SAMPLES_PER_PROMPT = 16
LEARNING_RATE = 2e-4
PASS_AT_8 = "pass_at/8"
_ROOT = Path(__file__).parent.parent

OWN: Mapping[str, Mapping[str, Json]] = {
    "gdpo": {"component_weights": {"correct": 1.0, "number": 0.1}},
    # Twice the policy's, as in the paper: the preset's is for a model of seven billion parameters
    "prime": {"implicit_reward": {"learning_rate": 2 * LEARNING_RATE}},
}
"""What a preset cannot do without."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """One stage. NaN where the run does not know."""

    before: float
    after: float
    pass_at_8: float
    entropy: float
    seconds: float

    @property
    def gain(self) -> float:
        return self.after - self.before


def presets() -> list[str]:
    """Those that learn from samples of the policy and their rewards."""
    return [
        name
        for name, preset in PRESETS.items()
        if preset.samples_from == "policy" and preset.reads_rewards
    ]


def run_file(folder: Path, seed: int, steps: int, names: Sequence[str]) -> dict[str, Json]:
    demo = yaml.safe_load((_ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    held_out = {"every_steps": steps, "prompts": 512, "metric": "correct"}
    [warm] = [stage for stage in demo["stages"] if stage["name"] == WARM]
    return {
        **demo,
        "run": {"name": f"seed-{seed}", "seed": seed, "dir": str(folder)},
        "evaluate": held_out,
        "stages": [warm, *(stage(name, steps) for name in names)],
        "checkpoint": {"every_steps": steps, "keep": 1},
    }


def stage(name: str, steps: int) -> dict[str, Json]:
    # Without groups to compare, as many prompts instead
    has_groups = PRESETS[name].samples_per_prompt > 1
    samples = SAMPLES_PER_PROMPT if has_groups else 1
    return {
        "name": name.replace("_", "-"),
        "algorithm": {"name": name, "samples_per_prompt": samples, **OWN.get(name, {})},
        "start_from": f"stage:{WARM}",
        "steps": steps,
        "prompts_per_step": SAMPLES_PER_STEP // samples,
        "updates_per_step": 2,
        "learning_rate": LEARNING_RATE,
    }


def learn(folder: Path, seed: int, steps: int, names: Sequence[str]) -> dict[str, Learnt]:
    """By preset. Raises RuntimeError where the run fails."""
    path = folder / f"seed-{seed}.yaml"
    path.write_text(yaml.safe_dump(run_file(folder, seed, steps, names), sort_keys=False))
    manta_side.train(path)
    lines = read_metrics(folder / f"seed-{seed}" / "metrics.jsonl")
    stages = {name: name.replace("_", "-") for name in names}
    return {name: learnt([x for x in lines if x.stage == own]) for name, own in stages.items()}


def learnt(lines: Sequence[MetricsLine]) -> Learnt:
    """What the lines of one stage say."""
    accuracies = [line.values[ACCURACY] for line in lines if ACCURACY in line.values]
    trained = [line.values for line in lines if "time/step" in line.values]
    last = trained[-max(1, len(trained) // 10) :]
    return Learnt(
        accuracies[0],
        accuracies[-1],
        mean(values.get(PASS_AT_8, float("nan")) for values in last),
        mean(values.get(ENTROPY, float("nan")) for values in last),
        sum(values["time/step"] for values in trained),
    )


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
            _mean(name, "time", [run.seconds for run in runs], "s"),
        ]
    return made


def _mean(name: str, what: str, values: Sequence[float], unit: str = "") -> Figure:
    return Figure(f"{name}: {what}", mean(values), unit, None, None, "higher", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="of each preset")
    parser.add_argument("--only", nargs="+", choices=presets(), default=presets())
    arguments = parser.parse_args()
    found: dict[str, list[Learnt]] = {name: [] for name in arguments.only}
    with tempfile.TemporaryDirectory(prefix="algorithms-") as folder:
        for seed in range(arguments.seeds):
            for name, each in learn(Path(folder), seed, arguments.steps, arguments.only).items():
                found[name].append(each)
                print(f"seed {seed}, {name}: {each}", flush=True)
    write(
        "algorithms",
        CLAIM,
        figures(found),
        ["ray", "torch", "transformers"],
        len(os.sched_getaffinity(0)),
    )
    draw(
        {
            name: [(run.before, run.after, run.pass_at_8, run.entropy) for run in runs]
            for name, runs in found.items()
        },
        RESULTS / "algorithms.png",
    )


if __name__ == "__main__":
    main()
