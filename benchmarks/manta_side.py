"""The Manta side of a comparison: the run file of the work, and the command that trains it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, TypeAlias

import yaml

from benchmarks.grpo_work import STD_EPSILON, GrpoWork
from benchmarks.pinned_lengths import PROMPT_TOKENS
from manta.orchestrator.metrics import TOKENS, read_metrics

NAME = "manta"

EngineName: TypeAlias = Literal["embedded", "vllm"]


def write_run_file(
    path: Path, model_folder: Path, work: GrpoWork, engine: EngineName = "embedded"
) -> None:
    """Everything that the work does not name is Manta's default."""
    algorithm = {
        "name": "grpo",
        "samples_per_prompt": work.samples,
        "std_epsilon": STD_EPSILON,
        "clip_low": work.clip,
        "clip_high": work.clip,
        "kl": {"coef": 0.0},
    }
    run_file = {
        "run": {"name": NAME, "dir": str(path.parent), "seed": work.seed},
        "model": {"path": str(model_folder), "context": work.cap + PROMPT_TOKENS},
        "env": {
            "name": "benchmarks.pinned_lengths:PinnedLengths",
            "workload": work.workload,
            "tasks": work.tasks,
            "samples": work.samples,
            "seed": work.seed,
        },
        "reward": {
            "formula": "even",
            "components": {"even": {"reward": "benchmarks.pinned_lengths:EvenShare"}},
        },
        "stages": [
            {
                "name": "rl",
                "algorithm": algorithm,
                "steps": work.steps,
                "prompts_per_step": work.prompts,
            }
        ],
        "rollout": {
            "engine": engine,
            "max_new_tokens": work.cap,
            "max_staleness": 0,
            "ignore_eos": True,
        },
        # Groups that train together travel together: nothing else waits for one of them.
        "environment": {"groups_per_call": work.prompts},
        "learner": {
            "learning_rate": work.learning_rate,
            "betas": list(work.betas),
            "clip_norm": work.clip_norm,
        },
    }
    path.write_text(yaml.safe_dump(run_file, sort_keys=False), encoding="utf-8")


def command(run_file: Path) -> list[str]:
    """What `manta train` is, without asking for an installed script."""
    code = "import sys; from manta.orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, "train", str(run_file)]


def train(run_file: Path, *overrides: str) -> None:
    """Trains it, on a Ray of its own. Raises RuntimeError with what it said where it fails."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [*command(run_file), *overrides],
        cwd=root,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        told = done.stdout[-4000:] + done.stderr[-2000:]
        raise RuntimeError(f"{run_file.stem} ended with code {done.returncode}:\n{told}")


def metrics(run_file: Path) -> Path:
    return run_file.parent / NAME / "metrics.jsonl"


def check_lengths(run_file: Path, work: GrpoWork) -> None:
    """Raises RuntimeError unless every step trained on as many tokens as the table pins."""
    table = work.table()
    wanted = [float(table.lengths[tasks].sum()) for tasks in work.tasks_by_step()]
    found = [line.values[TOKENS] for line in read_metrics(metrics(run_file))]
    if found != wanted:
        raise RuntimeError(f"Manta trained on {found} tokens a step, asked for {wanted}")
