"""A plan's basis without a run to measure: a device's figures, and lengths as they often are.

Owns what is assumed of lengths, and saying all of it. The formulas are `roofline`'s.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.model_sizes import model_sizes
from manta.orchestrator.plan import devices
from manta.orchestrator.plan.basis import Basis
from manta.orchestrator.plan.devices import Device
from manta.orchestrator.plan.roofline import Roofline
from manta.orchestrator.simulation.lengths import LognormalLengths
from manta.orchestrator.simulation.speeds import EngineSpeed, Speeds
from manta.orchestrator.survey import Survey

MEDIAN_SHARE, SIGMA = 0.25, 0.8
"""Where nothing is known of answers: their median, in `rollout.max_new_tokens`, and spread."""


def assumed_basis(run_file: RunFile, stage: StageConfig, surveyed: Survey, device: Device) -> Basis:
    """Of `stage` on `device`. Raises ValueError where the model's sizes cannot be had, or an engine
    does not hold its weights."""
    lengths = _lengths(run_file, stage, surveyed)
    row = lengths.prompt + _mean_answer(lengths, run_file.rollout.max_new_tokens)
    assert surveyed.vocab_size is not None
    sizes = model_sizes(run_file.model, surveyed.vocab_size)
    roofline = Roofline(device, sizes, run_file, stage, row)
    own_speed = None
    if run_file.rollout.engine == "simulated":
        own_speed = EngineSpeed(1 / run_file.rollout.simulated.tokens_per_second)
    rows = None if own_speed else roofline.rows_that_fit()

    def fits(ranks: int) -> bool:
        learner = replace(run_file.learner, workers=ranks)
        held = roofline.learner_bytes(replace(run_file, learner=learner))
        return device.memory is None or held <= device.memory

    def speeds(ranks: int) -> Speeds:
        found = roofline.speeds(ranks)
        return found if own_speed is None else replace(found, engine=own_speed)

    told = [
        f"assumed: {device.name}: {device.source}",
        f"assumed: decoding reaches {devices.DECODE_SHARE:.0%} of the memory's bandwidth and takes "
        f"{1e3 * devices.STEP_OVERHEAD:g} ms more a step; prefill reaches "
        f"{devices.PREFILL_SHARE:.0%} and training {devices.TRAINING_SHARE:.0%} of the peak",
        f"assumed: {lengths.told()}, at most {run_file.rollout.max_new_tokens:,}",
        f"assumed: publish {speeds(1).overheads.publish:.3g} s, environment workers "
        f"{1e3 * devices.GROUP_SECONDS:g} ms a group, driver {devices.DRIVER_SECONDS:g} s a step, "
        "rewards at once; no group is filtered",
    ]
    if own_speed is not None:
        told.append("engines are simulated ones, at the run file's own speed and lengths")
    if rows is not None and rows < run_file.rollout.max_rows:
        told.append(f"an engine's memory holds {rows:,} rows of {row:,.0f} tokens: they bound it")
    return Basis(speeds, lengths, rows or 1 << 30, fits, tuple(told))


def _lengths(run_file: RunFile, stage: StageConfig, surveyed: Survey) -> LognormalLengths:
    prompts = surveyed.prompts.get(stage.name)
    prompt = run_file.model.context // 8 if prompts is None else math.ceil(prompts.mean)
    rollout = run_file.rollout
    if rollout.engine == "simulated":
        own = rollout.simulated
        median, sigma, share = own.length_median, own.length_sigma, own.length_prompt_share
        return LognormalLengths(prompt, median, sigma, share)
    median = max(1.0, MEDIAN_SHARE * rollout.max_new_tokens)
    return LognormalLengths(prompt, median, SIGMA)


def _mean_answer(lengths: LognormalLengths, most: int) -> float:
    drawn = lengths.draw(np.random.default_rng(0), 10_000)
    return float(np.minimum(drawn.answers, most).mean())
