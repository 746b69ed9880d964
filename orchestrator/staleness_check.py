"""Which settings of staleness, age and over-sampling make sense together."""

from __future__ import annotations

from collections.abc import Iterator

from manta.orchestrator.config import RunFile


def staleness_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    for key, staleness in _stalenesses(run_file):
        if staleness < 0:
            yield f"{key}: is {staleness}, must be at least 0"
        if run_file.run.deterministic and staleness != 0:
            yield (
                f"{key}: is {staleness}, but run.deterministic needs 0: with more, the weights "
                "that sample depend on timing"
            )
    yield from _age(run_file)
    yield from _oversample(run_file)


def _stalenesses(run_file: RunFile) -> Iterator[tuple[str, int]]:
    """Every place that sets a staleness, and what it is there."""
    yield "rollout.max_staleness", run_file.rollout.max_staleness
    for index, stage in enumerate(run_file.stages):
        if stage.max_staleness is not None:
            yield f"stages[{index}].max_staleness", stage.max_staleness


def _largest(run_file: RunFile) -> int:
    """The staleness of the stalest stage that trains on samples."""
    stages = (stage for stage in run_file.stages if stage.samples_to_train)
    return max((run_file.max_staleness(stage) for stage in stages), default=0)


def _age(run_file: RunFile) -> Iterator[str]:
    rollout, staleness = run_file.rollout, _largest(run_file)
    limit = rollout.max_token_age
    if limit is not None and limit < 0:
        yield f"rollout.max_token_age: is {limit}, must be at least 0"
    is_tighter = limit is not None and 0 <= limit < staleness
    if is_tighter and rollout.when_too_old == "wait":
        yield (
            f"rollout.when_too_old: is 'wait', but rollout.max_token_age {limit} is below "
            f"max_staleness {staleness}, and waiting makes nothing younger: lower max_staleness, "
            "or choose drop_and_replace or mask_tokens"
        )
    if rollout.when_too_old != "wait" and not is_tighter and rollout.oversample == 1:
        yield (
            f"rollout.when_too_old: '{rollout.when_too_old}' has no effect, since nothing becomes "
            f"older than max_staleness {staleness}: set rollout.max_token_age below it"
            + (" or rollout.oversample above 1" if staleness == 0 else "")
            + ", or remove it"
        )


def _oversample(run_file: RunFile) -> Iterator[str]:
    rollout = run_file.rollout
    if rollout.oversample < 1:
        yield f"rollout.oversample: is {rollout.oversample:g}, must be at least 1"
    if rollout.oversample <= 1:
        if rollout.overtaken != "start_anew":
            yield (
                f"rollout.overtaken: '{rollout.overtaken}' has no effect, since every group of a "
                "step is waited for: set rollout.oversample above 1, or remove it"
            )
        return
    yield from _carry_over(run_file) if rollout.overtaken == "carry_over" else _race(run_file)
    if run_file.run.deterministic:
        yield (
            f"rollout.oversample: is {rollout.oversample:g}, but run.deterministic needs 1: which "
            "groups finish first depends on timing"
        )


def _race(run_file: RunFile) -> Iterator[str]:
    rollout = run_file.rollout
    if rollout.when_too_old != "drop_and_replace":
        yield (
            f"rollout.oversample: {rollout.oversample:g} needs rollout.when_too_old "
            "drop_and_replace, or rollout.overtaken carry_over with max_staleness 1: what becomes "
            "of the groups that a full step leaves behind?"
        )
    if _largest(run_file) > 0:
        yield (
            f"rollout.oversample: {rollout.oversample:g} needs max_staleness 0, since groups that "
            "are overtaken start anew under the newest weights: set it to 0, or choose "
            "rollout.overtaken: carry_over"
        )


def _carry_over(run_file: RunFile) -> Iterator[str]:
    rollout = run_file.rollout
    if rollout.oversample > 2:
        yield (
            f"rollout.oversample: is {rollout.oversample:g}, must be at most 2 with overtaken "
            "carry_over: more groups would be left behind than the next step can take, and "
            "staleness would not hold"
        )
    synchronous = [
        stage.name
        for stage in run_file.stages
        if stage.samples_to_train and run_file.max_staleness(stage) < 1
    ]
    if synchronous:
        yield (
            f"rollout.overtaken: 'carry_over' needs max_staleness of at least 1, and stage "
            f"'{synchronous[0]}' has 0: what is carried over was begun under older weights"
        )
    if rollout.when_too_old == "drop_and_replace":
        yield (
            "rollout.when_too_old: 'drop_and_replace' would make anew what overtaken carry_over "
            "keeps: choose wait or mask_tokens, or overtaken start_anew"
        )
