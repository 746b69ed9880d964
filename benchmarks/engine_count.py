"""What more engines cost the driver, with real actors: its processor time a group, by engines.

One Ray, one real run (`manta train`) for each number of simulated engines; nothing waits for them,
so what differs is routing, and a publish to each engine at every step.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import median

import yaml

from benchmarks.driver_run import finish
from benchmarks.manta_side import command
from benchmarks.ray_head import ray_head
from benchmarks.report import Figure
from manta.envs.records import Json
from manta.orchestrator.metrics import DRIVER_CPU, read_metrics

COUNTS = (4, 50)
PROMPTS, SAMPLES, STEPS, WARM_UP = 128, 8, 12, 3
CPUS = 16
"""That Ray believes in: most workers wait."""


def write_run_file(path: Path, engines: int) -> None:
    run_file: dict[str, Json] = {
        "run": {"name": f"engines-{engines}", "dir": str(path.parent)},
        "model": {
            "build": {"layers": 1, "width": 8, "heads": 2, "mlp_width": 16},
            "tokenizer": "char:0123456789+=",
            "context": 64,
        },
        "env": {"name": "arithmetic", "digits": 2},
        "reward": {
            "formula": "value",
            "components": {"value": {"reward": "length", "target": 0, "limit": 32}},
        },
        "stages": [
            {
                "name": "rl",
                "algorithm": {"name": "grpo", "samples_per_prompt": SAMPLES, "kl": {"coef": 0.0}},
                "steps": STEPS,
                "prompts_per_step": PROMPTS,
            }
        ],
        "rollout": {
            "engine": "simulated",
            "workers": engines,
            "max_rows": 64,
            "max_new_tokens": 32,
            "simulated": {"tokens_per_second": 1e6, "length_median": 8.0, "length_sigma": 0.5},
        },
        "learner": {"learning_rate": 1e-4, "threads": 1, "tokens_per_micro_batch": 16384},
        "environment": {"workers": 2},
        "checkpoint": {"every_steps": 1000},
        "track": {"write_trajectories": False},
        "publish": {"probe_tolerance": 1000.0},
    }
    path.write_text(yaml.safe_dump(run_file, sort_keys=False), encoding="utf-8")


def milliseconds(engines: int) -> list[float]:
    """Of driver's processor time a group, step by step. Raises RuntimeError where a run fails."""
    with ray_head(CPUS) as environment, tempfile.TemporaryDirectory(prefix="engines-") as temporary:
        path = Path(temporary) / "run.yaml"
        write_run_file(path, engines)
        finish(command(path), {**os.environ, **environment})
        lines = read_metrics(path.parent / f"engines-{engines}" / "metrics.jsonl")
    return [1e3 * line.values[DRIVER_CPU] / PROMPTS for line in lines[WARM_UP:]]


def figures() -> list[Figure]:
    made = []
    found = {engines: milliseconds(engines) for engines in COUNTS}
    for engines, each in found.items():
        name = f"real actors, {engines} engines: driver, Ray's calls included"
        made.append(Figure(name, median(each), "ms/group", None, None, "lower", each))
    few, many = (median(found[count]) for count in COUNTS)
    further = PROMPTS * (many - few) / (max(COUNTS) - min(COUNTS))
    made.append(
        Figure("real actors: each further engine", further, "ms/step", None, None, "lower", [])
    )
    return made
