"""Measured speeds and lengths: what the files of a finished run say of one of its stages.

Owns reading and fitting. Engines' steps come from the sums of `engine/*` in `metrics.jsonl`, the
learner's from `time/learner/*`, lengths from the written trajectories or, where there are none,
from the quantiles in the metrics. What these do not explain of the run's own step time is fitted in
`measured`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from manta.actors.engines.occupancy import NO_WORK, EngineWork
from manta.envs.trajectory_files import TrajectoryReader
from manta.orchestrator import run_file as run_files
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.ledger import read_ledger
from manta.orchestrator.metrics import (
    RANKS,
    SAMPLES,
    STALENESS,
    TOKENS,
    MetricsLine,
    engine_work,
    read_metrics,
)
from manta.orchestrator.plan.roofline import passes
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.simulation.lengths import (
    GroupLengths,
    Lengths,
    LognormalLengths,
    SeenLengths,
)
from manta.orchestrator.simulation.speeds import EngineSpeed, LearnerSpeed, Overheads

MOST_GROUPS = 1_000
"""Written groups that are read for their lengths, the newest ones."""
REFERENCE_SHARE = 1 / 3
"""Of a training pass: what a pass without gradients takes."""
_SPREAD = 1.3
"""Steps whose tokens differ by less than this factor do not tell a part that is the same in all."""
_BESIDE = ("evaluate", "checkpoint", "checkpoint_wait", "product", "refresh_reference")
"""Phases that do not belong to a usual step."""
_Q95 = 1.6449
"""Of a standard normal number."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of `stage` in `run_file`, over `steps` steps. `per_pass` are the learner's
    seconds for a token of the rank that has the most, in one pass forward and backward;
    `overheads.group` is 0 until it is fitted."""

    run_file: RunFile
    stage: StageConfig
    steps: int
    step_seconds: float
    engine: EngineSpeed
    learner_fixed: float
    per_pass: float
    overheads: Overheads
    lengths: Lengths
    flat_share: float
    told: tuple[str, ...]

    def learner(self, stage: StageConfig, ranks: int) -> LearnerSpeed:
        return LearnerSpeed(self.learner_fixed, self.per_pass * passes(stage), ranks)


def calibrate(folder: Path, stage_name: str | None) -> Calibration:
    """Of the run in `folder`: its stage of that name, or else its last one that samples to train.

    Raises ValueError where the folder is no run directory, or has no such steps in its metrics.
    """
    directory = RunDirectory(folder)
    run_file = _run_file(directory)
    stage = _stage(run_file, stage_name, folder)
    lines = _steps(directory, stage)
    engine, told_engine = _engine(lines, folder)
    fixed, per_token = _learner(lines, run_file.learner.ranks.min)
    overheads = _overheads(lines, per_token / passes(stage))
    lengths = _lengths(directory, lines)
    flat_share = _flat_share(directory, stage)
    step_seconds = fmean(usual_seconds(line.values) for line in lines)
    told = (
        f"measured: {len(lines)} steps of stage {stage.name} in {folder}, {step_seconds:.3g} s "
        "each without evaluation and checkpoints",
        f"an engine: {told_engine}",
        f"the learner: {fixed:.3g} s a step and {1e6 * per_token:.3g} us a token of a rank "
        f"(measured on {run_file.learner.ranks}, taken to scale with ranks)",
        f"beside them: rewards {overheads.reward:.3g} s a group, publish "
        f"{overheads.publish:.3g} s, driver {overheads.step:.3g} s a step",
        f"lengths: {lengths.told()}",
    )
    return Calibration(
        run_file,
        stage,
        len(lines),
        step_seconds,
        engine,
        fixed,
        per_token / passes(stage),
        overheads,
        lengths,
        flat_share,
        told,
    )


def _run_file(directory: RunDirectory) -> RunFile:
    for path, what in ((directory.config, "config.yaml"), (directory.metrics, "metrics.jsonl")):
        if not path.is_file():
            raise ValueError(
                f"--from {directory.root}: there is no {what} in it: name the directory of a run, "
                "such as runs/demo"
            )
    return run_files.load(str(directory.config), ())


def _stage(run_file: RunFile, name: str | None, folder: Path) -> StageConfig:
    sampling = [stage for stage in run_file.stages if stage.samples_to_train]
    named = [stage for stage in sampling if stage.name == name]
    if not sampling:
        raise ValueError(f"--from {folder}: no stage of that run samples to train")
    return (named or sampling)[-1]


def _steps(directory: RunDirectory, stage: StageConfig) -> list[MetricsLine]:
    """The lines of the stage's steps. The first ones warm up caches and compilers, and fill the
    pipeline of a stage that works ahead: they are left out where enough others are there."""
    lines = [
        line
        for line in read_metrics(directory.metrics)
        if line.stage == stage.name and SAMPLES in line.values and STALENESS in line.values
    ]
    if not lines:
        raise ValueError(
            f"--from {directory.root}: its metrics.jsonl has no step of stage {stage.name}: let it "
            "run for a few steps"
        )
    return lines[min(2, len(lines) // 2) :]


def usual_seconds(values: Mapping[str, float]) -> float:
    """Of a step, by its metrics: without evaluation and what belongs to checkpoints."""
    return values["time/step"] - sum(values.get(f"time/{name}", 0.0) for name in _BESIDE)


def _engine(lines: Sequence[MetricsLine], folder: Path) -> tuple[EngineSpeed, str]:
    work = sum((engine_work(line.values) for line in lines), NO_WORK)
    prefill = work.prefill_seconds / work.prefill_tokens if work.prefill_tokens else 0.0
    if work.steps:
        base, per_row = fitted_steps(work)
        told = f"a decode step takes {1e3 * base:.3g} ms and {1e6 * per_row:.3g} us a row"
    else:
        # An engine that cannot tell its steps: what a row took for a token, whatever else there was
        seconds = sum(line.values.get("engine/busy_row_seconds", 0.0) for line in lines)
        tokens = sum(line.values[TOKENS] for line in lines)
        if seconds <= 0:
            raise ValueError(
                f"{folder}: its metrics do not say how busy the engines were "
                "(engine/busy_row_seconds): they were written by an older release; run a few steps "
                "anew"
            )
        base, per_row = seconds / tokens, 0.0
        told = (
            f"a row takes {1e3 * base:.3g} ms a token, whatever the number of rows: this engine "
            "does not tell its steps, so that other loads than the measured one are a guess"
        )
    told += f", prefill {1e6 * prefill:.3g} us a token"
    return EngineSpeed(base, per_row, prefill_per_token=prefill), told


def fitted_steps(work: EngineWork) -> tuple[float, float]:
    """Least squares of the seconds of a decode step: (a, b) of a + b * rows, neither below 0.
    Where all steps had the same rows, all of it is a."""
    count, rows, squares = work.steps, work.rows, work.rows_squared
    spread = count * squares - rows * rows
    if spread <= 1e-3 * rows * rows:
        return work.seconds / count, 0.0
    slope = (count * work.row_seconds - rows * work.seconds) / spread
    base = (work.seconds - slope * rows) / count
    if slope < 0:
        return work.seconds / count, 0.0
    if base < 0:
        return 0.0, work.row_seconds / squares
    return base, slope


def _learner(lines: Sequence[MetricsLine], ranks: int) -> tuple[float, float]:
    """(seconds a step beside its tokens, seconds a token of a rank), of `ranks` where a line does
    not say how many there were."""
    tokens = np.array([v["tokens/total"] / v.get(RANKS, ranks) for v in (e.values for e in lines)])
    steps = np.array([line.values["time/learner/step"] for line in lines])
    beside = fmean(line.values["time/learn"] for line in lines) - float(steps.mean())
    slope, base = float(steps.sum() / tokens.sum()), 0.0
    if tokens.max() > _SPREAD * tokens.min() and len(lines) > 2:
        found = np.polyfit(tokens, steps, 1)
        if found[0] > 0 and found[1] > 0:
            slope, base = float(found[0]), float(found[1])
    return max(0.0, beside) + base, slope


def _overheads(lines: Sequence[MetricsLine], per_pass: float) -> Overheads:
    def mean(name: str) -> float:
        return fmean(line.values.get(name, 0.0) for line in lines)

    phases = sum(mean(f"time/{name}") for name in ("generate", "score", "learn", "publish"))
    steps = fmean(usual_seconds(line.values) for line in lines)
    return Overheads(
        reward=mean("time/group/score"),
        reference_per_token=per_pass * REFERENCE_SHARE,
        publish=mean("time/publish"),
        step=max(0.0, steps - phases),
    )


def _lengths(directory: RunDirectory, lines: Sequence[MetricsLine]) -> Lengths:
    counted = {line.step for line in lines}
    if any(directory.trajectories.glob("step=*/*.parquet")):
        reader = TrajectoryReader(directory.trajectories)
        places = [i for i, entry in enumerate(reader.entries) if entry.step in counted]
        groups = []
        for place in places[-MOST_GROUPS:]:
            rows = reader.group(place).trajectories
            made = np.array([each.loss_mask.sum() for each in rows], np.int32)
            groups.append(GroupLengths(int(len(rows[0].token_ids) - made[0]), np.maximum(1, made)))
        if groups:
            return SeenLengths(tuple(groups))

    def mean(name: str) -> float:
        return fmean(line.values[name] for line in lines)

    prompt = (mean("tokens/total") - mean(TOKENS)) / mean(SAMPLES)
    median = max(1.0, mean("length/p50"))
    sigma = max(0.0, math.log(max(1.0, mean("length/p95")) / median) / _Q95)
    return LognormalLengths(round(prompt), median, sigma)


def _flat_share(directory: RunDirectory, stage: StageConfig) -> float:
    if not directory.ledger.exists():
        return 0.0
    seen = [entry.outcome for entry in read_ledger(directory.ledger) if entry.stage == stage.name]
    looked_at = seen.count("trained") + seen.count("filtered")
    return seen.count("filtered") / looked_at if looked_at else 0.0


def with_group_seconds(found: Calibration, seconds: float) -> Calibration:
    return replace(found, overheads=replace(found.overheads, group=seconds))
