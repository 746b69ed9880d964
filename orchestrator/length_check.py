"""Which settings against the long tail of lengths make sense: redundant samples and the cap."""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.engines.settings import CapSettings
from manta.envs.registry import build
from manta.orchestrator.config import RunFile, StageConfig


def length_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    rollout = run_file.rollout
    share = rollout.simulated.length_prompt_share
    if not 0 <= share <= 1:
        yield f"rollout.simulated.length_prompt_share: is {share:g}, must lie in 0..1"
    trains = any(stage.samples_to_train for stage in run_file.stages)
    if rollout.redundant_samples:
        yield from _redundant(run_file)
        if not trains:
            yield f"rollout.redundant_samples: {_NO_EFFECT}"
    if rollout.cap is not None:
        yield from _cap(run_file, rollout.cap)
        if not trains:
            yield f"rollout.cap: {_NO_EFFECT}"


_NO_EFFECT = "has no effect, since no stage trains on samples of the policy: remove it"


def _redundant(run_file: RunFile) -> Iterator[str]:
    rollout = run_file.rollout
    count = rollout.redundant_samples
    if count < 0:
        yield f"rollout.redundant_samples: is {count}, must be at least 0"
        return
    if run_file.run.deterministic:
        yield (
            f"rollout.redundant_samples: is {count}, but run.deterministic needs 0: which samples "
            "end first depends on timing"
        )
    if rollout.ignore_eos:
        yield (
            f"rollout.redundant_samples: is {count}, but with rollout.ignore_eos every sample has "
            "the length of its budget, and none ends earlier by itself: set it to 0"
        )
    for stage in run_file.stages:
        if stage.samples_to_train and not _is_single_turn(stage):
            yield (
                f"rollout.redundant_samples: is {count}, but stage '{stage.name}' has an "
                "environment of several turns, whose samples are requests of their own: set it "
                "to 0"
            )


def _is_single_turn(stage: StageConfig) -> bool:
    """What cannot be built is told elsewhere."""
    if stage.env is None:
        return True
    try:
        env = build("env", stage.env.name, stage.env.options)
    except ValueError:
        return True
    return env.single_turn


def _cap(run_file: RunFile, cap: CapSettings) -> Iterator[str]:
    rollout = run_file.rollout
    most = rollout.max_new_tokens
    if (cap.tokens is None) == (cap.medians is None):
        found = "neither" if cap.tokens is None else "both"
        yield f"rollout.cap: exactly one of tokens and medians is needed, found {found}"
    if cap.tokens is not None and not 1 <= cap.tokens <= most:
        yield (
            f"rollout.cap.tokens: is {cap.tokens}, must lie in 1..{most}: rollout.max_new_tokens "
            "bounds every sample"
        )
    if cap.tokens == most and cap.then == "truncate":
        yield (
            f"rollout.cap.tokens: {most} is rollout.max_new_tokens, so that nothing would be cut "
            "earlier: lower it, or choose then: mask"
        )
    if cap.medians is not None and cap.medians <= 1:
        yield (
            f"rollout.cap.medians: is {cap.medians:g}, must be above 1: a cap at the median would "
            "cut half of all samples, and pull the median down with it"
        )
    if rollout.ignore_eos:
        told = "none would carry a loss" if cap.then == "mask" else "the cap is just a budget"
        yield (
            "rollout.cap: with rollout.ignore_eos every sample is ended by its budget, so that "
            f"{told}: remove one of the two"
        )
