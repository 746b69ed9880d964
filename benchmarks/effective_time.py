"""Workers are killed in a tenth of the steps of a run: how much of its time still trains.

The figure is the field's effective training time ratio (ETTR): productive training time over
wall-clock time, as ByteRobust defines it (arXiv 2509.16293) and RobustRL reports it for runs with a
fault in 10% of their steps (arXiv 2512.22492: over 80%, on 256 GPUs). The productive time of a step
is what that very step takes in a run without faults; numerator and denominator are over the same
steps, the first ones, in which a run starts up, left out of both.

Three real runs (`manta train`) with all roles as real actors. Engines are simulated: their token
clock makes steps of some seconds, on-policy, so that nothing hides behind anything, and two cores
mostly wait. Lengths follow from seeds, so a step is the same work in every run. A fault is a
SIGKILL to one process of a drawn role, at a drawn moment of a drawn step. The runs: without faults;
with faults of any role but the learner's; with faults of any role. A learner group comes back after
some ten seconds however long a step is, and whoever else dies costs at most what was under way: the
longer steps are, the better the ratio. The figures tell the seconds, too.
At the end of each run the ledger must agree with what the learner's ranks say they trained on.

    taskset -c 2,3 python -m benchmarks.effective_time [--steps N]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import yaml

from benchmarks import manta_side
from benchmarks.killed_rank import last_step
from benchmarks.learner_restart import check_history
from benchmarks.ray_head import ray_head
from benchmarks.report import Figure, write
from manta.actors.processes import figures as process_figures
from manta.envs.records import Json
from manta.orchestrator import status

CLAIM = "Effective training time with a worker killed in 10% of the steps (simulated engines)"
BAR, AIM = 90.0, 95.0
STEPS, WARM_UP = 60, 3
SHARE = 0.1
SEED = 0
LEARNER = "learner"
OTHERS = ("rollout", "environment", "reward")
STEP_SECONDS = 5.0
"""About what a step takes: a fault comes within that time after the step before."""
CPUS = 8
PROMPTS, SAMPLES, CAP = 8, 4, 160
_LOOK_SECONDS = 0.05
_LONGEST_STEP_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Fault:
    """`delay_seconds` after `step` ended, the process of a worker of `role` is killed; `choice`
    picks among several."""

    step: int
    delay_seconds: float
    role: str
    choice: int


@dataclass(frozen=True, slots=True)
class Timed:
    """When each step ended, in seconds, by step."""

    ends: Mapping[int, float]

    def seconds(self, after: int, last: int) -> float:
        """From the end of step `after` to that of step `last`."""
        return self.ends[last] - self.ends[after]


def schedule(seed: int, steps: int, roles: Sequence[str]) -> tuple[Fault, ...]:
    """One fault in each of `SHARE` of the measured steps."""
    draw = random.Random(seed)
    # The last two steps stay whole, so that what a fault costs is seen
    hit = draw.sample(range(WARM_UP, WARM_UP + steps - 2), round(SHARE * steps))
    return tuple(
        Fault(step, draw.uniform(0.0, STEP_SECONDS), draw.choice(roles), draw.randrange(1 << 16))
        for step in sorted(hit)
    )


def run_file(folder: Path, name: str, steps: int) -> dict[str, Json]:
    return {
        "run": {"name": name, "dir": str(folder), "seed": SEED},
        "model": {
            "build": {"layers": 1, "width": 8, "heads": 2, "mlp_width": 16},
            "tokenizer": "char:0123456789+=",
            "context": CAP + 16,
        },
        "env": {"name": "arithmetic", "digits": 2},
        "reward": {
            "formula": "short",
            "components": {"short": {"reward": "length", "target": 0, "limit": CAP}},
        },
        "stages": [
            {
                "name": "rl",
                "algorithm": {"name": "grpo", "samples_per_prompt": SAMPLES, "kl": {"coef": 0.0}},
                "steps": WARM_UP + steps,
                "prompts_per_step": PROMPTS,
            }
        ],
        "rollout": {
            "engine": "simulated",
            "workers": 2,
            # Each could take all the rows, so that a step takes as long whichever engine has them
            "max_rows": PROMPTS * SAMPLES,
            "max_new_tokens": CAP,
            "simulated": {"tokens_per_second": 30.0, "length_median": 64.0, "length_sigma": 0.4},
        },
        "environment": {"workers": 2},
        "reward_workers": {"workers": 2},
        "learner": {"learning_rate": 1e-6, "threads": 1},
        "checkpoint": {"every_steps": 10},
        # The simulated engine has no model: its log-probs cannot be the learner's
        "publish": {"probe_tolerance": 1000.0},
    }


def measure(
    folder: Path, name: str, steps: int, faults: Sequence[Fault], environment: Mapping[str, str]
) -> Timed:
    """Raises RuntimeError where the run fails or stands still, or lost or repeated a group."""
    path, run_dir, log = folder / f"{name}.yaml", folder / name, folder / f"{name}.log"
    path.write_text(yaml.safe_dump(run_file(folder, name, steps), sort_keys=False))
    with log.open("w") as output:
        process = subprocess.Popen(
            manta_side.command(path),
            cwd=Path(__file__).parent.parent,
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            timed = _followed(process, run_dir, WARM_UP + steps, list(faults))
            if process.wait(_LONGEST_STEP_SECONDS) != 0:
                raise RuntimeError(f"exit code {process.returncode}")
        except RuntimeError as error:
            raise RuntimeError(f"{error}:\n{log.read_text()[-4000:]}") from error
        finally:
            process.kill()
    check_history(run_dir)
    return timed


def _followed(
    process: subprocess.Popen[bytes], run_dir: Path, last: int, faults: list[Fault]
) -> Timed:
    """Notes when steps end, and makes the faults happen."""
    ends: dict[int, float] = {}
    while last not in ends:
        now, step = time.monotonic(), last_step(run_dir)
        for each in range(max(ends, default=0) + 1, step + 1):
            ends[each] = now
        newest = max(ends.values(), default=now)
        if process.poll() is not None or now > newest + _LONGEST_STEP_SECONDS:
            raise RuntimeError(f"the run ended, or stood still, after step {step}")
        if faults and now > ends.get(faults[0].step, now) + faults[0].delay_seconds:
            _kill(run_dir, faults.pop(0))
        time.sleep(_LOOK_SECONDS)
    return Timed(ends)


def _kill(run_dir: Path, fault: Fault) -> None:
    """Raises RuntimeError where no worker of the role is there."""
    found = status.read(run_dir / "status.json").workers
    known = [each.identity for each in found if each.role == fault.role and each.identity]
    alive = [each.process for each in known if process_figures(each.process) is not None]
    if not alive:
        raise RuntimeError(f"no worker to kill: {fault}")
    victim = sorted(alive, key=lambda process: process.pid)[fault.choice % len(alive)]
    with suppress(ProcessLookupError):
        os.kill(victim.pid, 9)


def figures(
    kind: str, steps: int, undisturbed: Timed, disturbed: Timed, faults: Sequence[Fault]
) -> list[Figure]:
    first, last = WARM_UP, WARM_UP + steps
    productive, wall = (each.seconds(first, last) for each in (undisturbed, disturbed))
    made = [
        Figure(
            f"{kind}: productive time of wall time",
            100 * productive / wall,
            "%",
            BAR,
            AIM,
            "higher",
            [(productive, wall)],
        )
    ]
    for role in sorted({fault.role for fault in faults}):
        # The step that was hit, and the next one, which may still be short of a worker
        lost = [
            disturbed.seconds(fault.step, fault.step + 2)
            - undisturbed.seconds(fault.step, fault.step + 2)
            for fault in faults
            if fault.role == role
        ]
        told = f"{kind}: {role} killed {len(lost)} times, cost of one"
        made.append(Figure(told, mean(lost), "s", None, None, "lower", lost))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED, help="of the faults")
    parser.add_argument("--keep", type=Path, default=None, help="folder to leave the runs in")
    arguments = parser.parse_args()
    steps, seed = arguments.steps, arguments.seed
    without_learner = schedule(seed, steps, OTHERS)
    all_roles = schedule(seed, steps, (*OTHERS, LEARNER))
    with tempfile.TemporaryDirectory(prefix="effective-") as temporary, ray_head(CPUS) as head:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        undisturbed = measure(folder, "undisturbed", steps, (), head)
        others = measure(folder, "others", steps, without_learner, head)
        anyone = measure(folder, "anyone", steps, all_roles, head)
    step_seconds = [undisturbed.seconds(step, step + 1) for step in range(WARM_UP, WARM_UP + steps)]
    told = "a step without faults"
    found = [
        Figure(told, mean(step_seconds), "s", None, None, "lower", step_seconds),
        *figures("any role but the learner", steps, undisturbed, others, without_learner),
        *figures("any role", steps, undisturbed, anyone, all_roles),
    ]
    cores = len(os.sched_getaffinity(0))
    write("effective_time", CLAIM, found, ["ray", "torch", "numpy"], cores)


if __name__ == "__main__":
    main()
