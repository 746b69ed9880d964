"""Length at equal accuracy: GRPO-lambda against GRPO where right answers may be long or short.

The task is that of `benchmarks.algorithms`, but the sums of the warm start have up to four zeros in
front: a policy may leave them away, and is right either way. From one warm start, as many samples
for both, on every seed. GRPO is not asked to be short; its length is what GRPO-lambda's, which
makes the prompts that are right most often pay for length, is held against. Its authors report
answers of half the length that are right as often (arXiv 2505.18086).

    taskset -c 2,3 python -m benchmarks.answer_length [--seeds N] [--steps N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import yaml

from benchmarks import manta_side
from benchmarks.algorithms_runs import run_file, stage_name
from benchmarks.report import Figure, write
from manta.orchestrator.metrics import ACCURACY, read_metrics

CLAIM = "Held-out length at equal accuracy: GRPO-lambda against GRPO"
PRESETS = ("grpo", "grpo_lambda")
EVALUATED_LENGTH = "eval/length"


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one evaluation. `length` in tokens, the end of the answer among them."""

    accuracy: float
    length: float


def learn(folder: Path, seed: int, steps: int) -> dict[str, tuple[Answers, Answers]]:
    """By preset, the first evaluation of its stage and the last. Raises RuntimeError where the run
    fails."""
    name = f"seed-{seed}"
    content = run_file(name, folder, seed, steps, PRESETS)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    manta_side.train(path, "env.name=benchmarks.padded_sums:PaddedSums")
    lines = read_metrics(folder / name / "metrics.jsonl")
    found = {}
    for preset in PRESETS:
        of_stage = [line.values for line in lines if line.stage == stage_name(preset)]
        evaluated = [
            Answers(values[ACCURACY], values[EVALUATED_LENGTH])
            for values in of_stage
            if ACCURACY in values
        ]
        found[preset] = (evaluated[0], evaluated[-1])
        print(f"seed {seed}, {preset}: {found[preset]}", flush=True)
    return found


def figures(seeds: Sequence[dict[str, tuple[Answers, Answers]]]) -> list[Figure]:
    warm = [found["grpo"][0] for found in seeds]
    ends = {preset: [found[preset][1] for found in seeds] for preset in PRESETS}
    pairs = list(zip(ends["grpo_lambda"], ends["grpo"], strict=True))
    made = []
    for name, answers in (("warm start", warm), *ends.items()):
        accuracies = [each.accuracy for each in answers]
        lengths = [each.length for each in answers]
        made += [
            Figure(f"{name}: accuracy", mean(accuracies), "", None, None, "higher", accuracies),
            Figure(f"{name}: length", mean(lengths), "tokens", None, None, "lower", lengths),
        ]
    shorter = [short.length / long.length for short, long in pairs]
    lost = [long.accuracy - short.accuracy for short, long in pairs]
    return [
        *made,
        Figure("length, of GRPO's", mean(shorter), "x", None, None, "lower", shorter),
        Figure("accuracy lost to GRPO", mean(lost), "", None, None, "lower", lost),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="of each preset")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="answer-length-") as folder:
        seeds = [learn(Path(folder), seed, arguments.steps) for seed in range(arguments.seeds)]
    write(
        "answer_length",
        CLAIM,
        figures(seeds),
        ["ray", "torch", "transformers"],
        len(os.sched_getaffinity(0)),
    )


if __name__ == "__main__":
    main()
