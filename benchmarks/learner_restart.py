"""A learner rank is killed in the middle of a run: how long until the first new step is done.

Real runs (`manta train`) on a Ray of their own: real engine, router, environment worker, publish,
checkpoints every ten steps. A rank is killed with SIGKILL, again and again, and each time the steps
since the newest checkpoint are replayed before the next new one. A step counts once the driver has
published it. At the end the ledger must agree with what the ranks that led to the final weights say
they trained on.

    taskset -c 2,3 python -m benchmarks.learner_restart [--kills N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import yaml

from benchmarks import manta_side
from benchmarks.killed_rank import falls, last_step, seconds_to_a_new_step, wait_for_step
from benchmarks.report import Figure, write
from manta.envs.records import Json
from manta.orchestrator.ledger import read_ledger
from manta.orchestrator.lives import lineage

CLAIM = "Learner rank killed: seconds to the first new step, replay included"
BAR, AIM = 15.0, 8.0
SEED = 7


def run_file(folder: Path, num_ranks: int) -> dict[str, Json]:
    return {
        "run": {"name": f"ranks-{num_ranks}", "dir": str(folder)},
        "model": {
            "build": {"layers": 4, "width": 128, "heads": 4, "mlp_width": 512},
            "tokenizer": "char:0123456789+=",
            "context": 16,
        },
        "env": {"name": "arithmetic", "digits": 2},
        "reward": {"formula": "correct", "components": {"correct": "exact"}},
        "stages": [
            {
                "name": "rl",
                "algorithm": {"name": "grpo", "samples_per_prompt": 8, "kl": {"coef": 0.0}},
                "steps": 100_000,
                "prompts_per_step": 32,
            }
        ],
        "rollout": {"max_new_tokens": 4},
        "learner": {"workers": num_ranks},
        "checkpoint": {"every_steps": 10},
    }


def measure(folder: Path, num_ranks: int, kills: int) -> tuple[list[float], list[float]]:
    """Seconds of each kill, and how many steps were replayed after it."""
    path = folder / f"ranks-{num_ranks}.yaml"
    path.write_text(yaml.safe_dump(run_file(folder, num_ranks), sort_keys=False), encoding="utf-8")
    run_dir = folder / f"ranks-{num_ranks}"
    chance = random.Random(SEED)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        manta_side.command(path),
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = []
    try:
        wait_for_step(process, run_dir, 3)
        for _ in range(kills):
            rank = chance.randrange(num_ranks)
            seconds.append(seconds_to_a_new_step(process, run_dir, rank))
            wait_for_step(process, run_dir, last_step(run_dir) + chance.randrange(3, 13))
        process.send_signal(signal.SIGINT)
        process.wait(120)
    finally:
        process.kill()
    check_history(run_dir)
    return seconds, [float(fall["steps to replay"]) for fall in falls(run_dir)]


def check_history(run_dir: Path) -> None:
    """Raises RuntimeError where ledger and ranks tell different stories."""
    ledger = {
        (e.step, tuple(e.group), e.content_hash)
        for e in read_ledger(run_dir / "ledger.jsonl")
        if e.outcome == "trained"
    }
    last = lineage(run_dir / "incarnations.jsonl")
    trained = set()
    for path in (run_dir / "trained").glob("rank=*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            if line["step"] <= last.get(line["incarnation"], line["step"]):
                trained.add((line["step"], tuple(line["group"]), line["hash"]))
    if ledger != trained:
        raise RuntimeError(f"{len(ledger ^ trained)} groups differ between ledger and ranks")


def figures(num_ranks: int, seconds: Sequence[float], replayed: Sequence[float]) -> list[Figure]:
    what = f"{num_ranks} rank{'s' if num_ranks > 1 else ''}"
    return [
        Figure(f"{what}: killed to new step", median(seconds), "s", BAR, AIM, "lower", seconds),
        Figure(f"{what}: slowest", max(seconds), "s", None, None, "lower", seconds),
        Figure(f"{what}: steps replayed", median(replayed), "steps", None, None, "lower", replayed),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--kills", type=int, default=5)
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="learner-restart-") as temporary:
        for num_ranks in (1, 2):
            started = time.monotonic()
            seconds, replayed = measure(Path(temporary), num_ranks, arguments.kills)
            print(num_ranks, seconds, replayed, f"{time.monotonic() - started:.0f} s", flush=True)
            found += figures(num_ranks, seconds, replayed)
    cores = len(os.sched_getaffinity(0))
    write("learner_restart", CLAIM, found, ["ray", "torch", "transformers"], cores)


if __name__ == "__main__":
    main()
