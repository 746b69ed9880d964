"""How far `manta plan` is off: predicted against measured seconds of a step, in real CPU runs.

Each case is two real runs (`manta train`) that differ in what a plan is asked about: number of
prompts, workers, staleness. The first one, which is short, calibrates; the second is predicted from
it and then measured. Nothing of the second run is used for its prediction but its run file.

- more prompts: GRPO as in the demo, embedded engine, on policy; three times the prompts.
- long tail: simulated engines in the real actors and loop, lengths lognormal (sigma 1), a learner
  of a set speed (`benchmarks.simulated_cluster`); from one engine on policy to two at staleness 2.
- two engines: simulated engines and lengths as before, the backend `plain`; from one engine to two,
  on policy.
- shared cores: embedded engine and learner of one thread each on two cores, from on policy to
  staleness 1. A plan takes them to be independent, and here they are not: no bar.

    taskset -c 2,3 python -m benchmarks.plan_error [--only NAME] [--keep FOLDER]

Steps are compared by their means, so whatever else the machine does counts as an error: let it do
nothing else. Runs that stand finished in the folder are not made again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

from benchmarks import simulated_cluster as cluster
from benchmarks.driver_run import finish
from benchmarks.manta_side import command
from benchmarks.ray_head import ray_head
from benchmarks.report import Figure, write
from manta.envs.records import Json
from manta.orchestrator import run_file as run_files
from manta.orchestrator.metrics import read_metrics
from manta.orchestrator.plan.calibration import Calibration, calibrate, usual_seconds
from manta.orchestrator.plan.measured import basis_of, fitted
from manta.orchestrator.plan.shapes import Simulated

CLAIM = "Seconds of a step predicted by manta plan, against real runs of another setting"
BAR, AIM = 15.0, 5.0
"""Percent."""
UNHELD = "shared cores"
"""The case without a bar."""
CPUS = 8
"""That Ray believes in: engines and learner take turns on the cores, or mostly wait."""
FILLING = 3
"""Steps of the predicted run that are not measured: they fill the pipeline."""

DEMO: dict[str, Json] = {
    "model": {
        "build": {"layers": 4, "width": 128, "heads": 4, "mlp_width": 344},
        "tokenizer": "char:0123456789+=",
        "context": 80,
    },
    "env": {"name": "arithmetic", "digits": 2, "eval_size": 512},
    "reward": {"formula": "correct", "components": {"correct": "exact"}},
    "learner": {"tokens_per_micro_batch": 4096, "learning_rate": 1e-5},
    "rollout": {"engine": "embedded", "max_new_tokens": 64, "max_rows": 256},
}
LEARNER: dict[str, Json] = {
    "learning_rate": 1e-6,
    "threads": 1,
    "tokens_per_micro_batch": 16384,
}
TIMED = "benchmarks.timed_backend:TimedBackend"
LONG_TAIL: dict[str, Json] = {
    "model": {
        "build": {"layers": 1, "width": 8, "heads": 2, "mlp_width": 16},
        "tokenizer": "char:0123456789+=",
        "context": cluster.CAP + 16,
    },
    "env": {"name": "arithmetic", "digits": 2},
    "reward": {
        "formula": "value",
        "components": {"value": {"reward": "length", "target": 0, "limit": cluster.CAP}},
    },
    "learner": LEARNER,
    "rollout": {
        "engine": "simulated",
        "max_rows": cluster.ROWS,
        "max_new_tokens": cluster.CAP,
        "simulated": {
            "tokens_per_second": cluster.TOKENS_PER_SECOND,
            "length_median": float(cluster.MEDIAN),
            "length_sigma": cluster.SIGMA,
        },
    },
    "publish": {"probe_tolerance": 1000.0},
}


@dataclass(frozen=True)
class Setting:
    """What differs between the two runs of a case."""

    prompts: int
    steps: int
    staleness: int = 0
    engines: int = 1


@dataclass(frozen=True)
class Case:
    name: str
    base: Mapping[str, Json]
    samples: int
    known: Setting
    asked: Setting
    threads: tuple[int, int] = (0, 0)
    """Of an engine and of a learner rank; 0: both cores, in turns."""


CASES = (
    Case("more prompts", DEMO, 16, Setting(32, 12), Setting(96, 12)),
    Case(
        "long tail",
        {**LONG_TAIL, "learner": {**LEARNER, "backend": TIMED}},
        cluster.SAMPLES,
        Setting(cluster.PROMPTS, 8),
        Setting(cluster.PROMPTS, 16, staleness=2, engines=2),
    ),
    Case("two engines", LONG_TAIL, 16, Setting(24, 8), Setting(24, 12, engines=2)),
    Case(UNHELD, DEMO, 16, Setting(48, 12), Setting(48, 14, staleness=1), (1, 1)),
)


@dataclass(frozen=True)
class Found:
    """Seconds of a step."""

    predicted: float
    measured: float
    known: float

    @property
    def error(self) -> float:
        """Percent of what was measured."""
        return 100 * abs(self.predicted / self.measured - 1)


def write_run_file(path: Path, case: Case, setting: Setting) -> None:
    rollout, learner = case.base["rollout"], case.base["learner"]
    assert isinstance(rollout, dict) and isinstance(learner, dict)
    own: dict[str, Json] = {
        "run": {"name": path.stem, "dir": str(path.parent)},
        "stages": [
            {
                "name": "rl",
                "algorithm": {
                    "name": "grpo",
                    "samples_per_prompt": case.samples,
                    "kl": {"coef": 0.0},
                },
                "steps": setting.steps,
                "prompts_per_step": setting.prompts,
                "max_staleness": setting.staleness,
            }
        ],
        "rollout": {**rollout, "workers": setting.engines, "threads": case.threads[0]},
        "learner": {"threads": case.threads[1], **learner},
        "checkpoint": {"every_steps": 1000},
    }
    path.write_text(yaml.safe_dump({**case.base, **own}, sort_keys=False), encoding="utf-8")


def made(folder: Path, case: Case, which: str, setting: Setting) -> Path:
    """The directory of the run, which is made where it does not stand in `folder`."""
    path = folder / f"{case.name.replace(' ', '-')}-{which}.yaml"
    directory = folder / path.stem
    if not (directory / "summary.json").exists():
        shutil.rmtree(directory, ignore_errors=True)
        write_run_file(path, case, setting)
        with ray_head(CPUS) as environment:
            finish(command(path), {**os.environ, **environment})
    return directory


def measure(folder: Path, case: Case) -> Found:
    known = fitted(calibrate(made(folder, case, "known", case.known), "rl"))
    asked = folder / f"{case.name.replace(' ', '-')}-asked.yaml"
    write_run_file(asked, case, case.asked)
    predicted = predicted_seconds(asked, known)
    directory = made(folder, case, "asked", case.asked)
    lines = [line for line in read_metrics(directory / "metrics.jsonl") if line.stage == "rl"]
    assert len(lines) == case.asked.steps, f"{directory} has {len(lines)} steps"
    measured = fmean(usual_seconds(line.values) for line in lines[FILLING:])
    for line in known.told:
        print(f"  {line}")
    return Found(predicted, measured, known.step_seconds)


def predicted_seconds(path: Path, known: Calibration) -> float:
    """Of a step of the run file at `path`, from what was measured of another run."""
    loaded = run_files.load(str(path), ())
    simulated = Simulated(loaded, loaded.stages[-1])
    workers = loaded.rollout.sizes.max, loaded.learner.ranks.max
    return simulated.predict(basis_of(known, loaded.stages[-1]), *workers).step_seconds


def figures(found: Mapping[str, Found]) -> list[Figure]:
    table = []
    for name, each in found.items():
        pair = [(each.predicted, each.measured)]
        bar, aim = (None, None) if name == UNHELD else (BAR, AIM)
        table += [
            Figure(f"{name}: calibrated on", each.known, "s/step", None, None, "lower", []),
            Figure(f"{name}: predicted", each.predicted, "s/step", None, None, "lower", []),
            Figure(f"{name}: measured", each.measured, "s/step", None, None, "lower", []),
            Figure(f"{name}: error", each.error, "%", bar, aim, "lower", pair),
        ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--only", default=None, help="one case, by name; writes no result")
    parser.add_argument("--keep", type=Path, default=None, help="folder to leave the runs in")
    arguments = parser.parse_args()
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="plan-error-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            if arguments.only in (None, case.name):
                found[case.name] = measure(folder, case)
                each = found[case.name]
                print(case.name, each, f"{each.error:.1f}%", flush=True)
    if arguments.only is None:
        cores = len(os.sched_getaffinity(0))
        write("plan_error", CLAIM, figures(found), ["ray", "torch", "numpy"], cores)


if __name__ == "__main__":
    main()
