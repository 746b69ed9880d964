"""Processor time of the driver per step, in a real run of the demo recipe.

The driver decides and passes references on; what it burns a step is what a large run would wait
for. Start-up, evaluations, checkpoints and the closing picture count too, spread over the steps.

    python -m benchmarks.driver_cpu [--runs N] [--steps N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.report import Figure, write

CLAIM = "Driver processor time per step, recipes/demo.yaml with all of its actors"
ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/demo.yaml"
BAR, AIM = 60.0, 40.0


def milliseconds_per_step(runs: Path, name: str, steps: int) -> float:
    """One run with `steps` steps in each stage. Raises RuntimeError where it does not finish."""
    code = "import sys; from manta.orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"
    overrides = [f"run.dir={runs}", f"run.name={name}"]
    overrides += [f"stages.{stage}.steps={steps}" for stage in ("warm-start", "rl")]
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(RECIPE), *overrides],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the demo ended with code {done.returncode}:\n{done.stdout[-4000:]}")
    summary = json.loads((runs / name / "summary.json").read_text(encoding="utf-8"))
    return float(summary["driver_cpu_ms_per_step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="steps of each of the two stages")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="driver-cpu-") as folder:
        found = [
            milliseconds_per_step(Path(folder), f"run-{run}", arguments.steps)
            for run in range(arguments.runs)
        ]
    figure = Figure("driver, both stages", median(found), "ms/step", BAR, AIM, "lower", found)
    write("driver_cpu", CLAIM, [figure], ["ray", "torch", "numpy"], os.cpu_count() or 0)


if __name__ == "__main__":
    main()
