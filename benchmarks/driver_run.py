"""Manta's side of the driver's comparison: a real run, each stage of which has its batch size.

The driver, its loop, publishes and pools are what `manta train` runs; so are router, environment,
reward and rollout workers, mailbox, weight store and learner ranks. Engines are simulated, at a
speed that nothing waits for, and ranks read their rows without training
(`benchmarks.sized_batches`, `benchmarks.reading_backend`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from benchmarks import manta_side
from benchmarks.ray_head import ROOT
from benchmarks.sized_batches import PROMPT, SAMPLES, Batch
from manta.envs.records import Json
from manta.orchestrator.metrics import DRIVER_CPU, MetricsLine, read_metrics

RANKS = 4
ENGINES = 4
ENVIRONMENTS = 2
WARM_UP = 2
"""Steps of each batch size that are not counted."""
NAME = "driver"


def write_run_file(path: Path, batches: Sequence[Batch], steps: int) -> None:
    """A stage for each of `batches`, with `steps` steps that count."""
    longest = max(batch.tokens for batch in batches)
    rows = max(batch.groups for batch in batches) * SAMPLES // ENGINES
    run_file: dict[str, Json] = {
        "run": {"name": NAME, "dir": str(path.parent)},
        "model": {
            "build": {"layers": 1, "width": 8, "heads": 2, "mlp_width": 16},
            "tokenizer": "char:0123456789+=",
            "context": longest + len(PROMPT) + 1,
        },
        "reward": {
            "formula": "first",
            "components": {"first": {"reward": "benchmarks.sized_batches:FirstToken"}},
        },
        "stages": [_stage(batch, steps) for batch in batches],
        "rollout": {
            "engine": "simulated",
            "workers": ENGINES,
            "max_rows": rows,
            "max_new_tokens": longest,
            "simulated": {"tokens_per_second": 1e12, "length_median": 1e9, "length_sigma": 0.0},
        },
        "learner": {
            "backend": "benchmarks.reading_backend:ReadingBackend",
            "workers": RANKS,
            "threads": 1,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "tokens_per_micro_batch": longest + len(PROMPT),
        },
        "environment": {"workers": ENVIRONMENTS},
        "checkpoint": {"every_steps": 1000},
        "track": {"write_trajectories": False},
        # Simulated engines have no model, so their log-probs are not the learner's. The receipt, a
        # hash of the bytes, is checked as ever.
        "publish": {"probe_tolerance": 1000.0},
    }
    path.write_text(yaml.safe_dump(run_file, sort_keys=False), encoding="utf-8")


def _stage(batch: Batch, steps: int) -> dict[str, Json]:
    return {
        "name": stage_name(batch),
        "algorithm": {"name": "grpo", "samples_per_prompt": SAMPLES, "kl": {"coef": 0.0}},
        "env": {"name": "benchmarks.sized_batches:SizedAnswers", "tokens": batch.tokens},
        "steps": WARM_UP + steps,
        "prompts_per_step": batch.groups,
    }


def stage_name(batch: Batch) -> str:
    return f"groups-{batch.groups}-mib-{batch.mib:g}"


def run(
    folder: Path, batches: Sequence[Batch], steps: int, environment: Mapping[str, str]
) -> dict[Batch, list[float]]:
    """Processor milliseconds of the driver in each step that counts.

    Raises RuntimeError where the run fails or trained on other sizes.
    """
    run_file = folder / "run.yaml"
    write_run_file(run_file, batches, steps)
    finish(manta_side.command(run_file), environment)
    return measured(read_metrics(folder / NAME / "metrics.jsonl"), batches, steps)


def measured(
    lines: Sequence[MetricsLine], batches: Sequence[Batch], steps: int
) -> dict[Batch, list[float]]:
    """See `run`; from the metrics of the run."""
    found = {}
    for batch in batches:
        of_stage = [line for line in lines if line.stage == stage_name(batch)][WARM_UP:]
        tokens = batch.groups * SAMPLES * (batch.tokens + len(PROMPT))
        if [line.values["tokens/total"] for line in of_stage] != [tokens] * steps:
            raise RuntimeError(f"{batch.name}: {len(of_stage)} steps, or not of {tokens} tokens")
        found[batch] = [1e3 * line.values[DRIVER_CPU] for line in of_stage]
    return found


def finish(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What `command` printed. Raises RuntimeError where it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        told = done.stdout[-4000:] + done.stderr[-4000:]
        raise RuntimeError(f"{command[1:4]} ended with code {done.returncode}:\n{told}")
    return done.stdout
