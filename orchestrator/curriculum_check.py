"""What a run file must say where the tasks of a stage are ordered by their pass rates."""

from __future__ import annotations

from collections.abc import Iterator

from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.curriculum_settings import CurriculumSettings
from manta.orchestrator.strict import nearest
from manta.orchestrator.survey import Survey


def curriculum_problems(run_file: RunFile, surveyed: Survey) -> Iterator[str]:
    """One line each, starting with the key."""
    for index, stage in enumerate(run_file.stages):
        if stage.curriculum is not None:
            for told in _stage(stage, stage.curriculum, surveyed):
                yield f"stages[{index}].curriculum{told}"


def _stage(stage: StageConfig, told: CurriculumSettings, surveyed: Survey) -> Iterator[str]:
    """Problems of one stage, as the rest of the key and what is wrong."""
    if not stage.samples_to_train:
        yield (
            ": pass rates are those of samples that the stage trains on, and this one samples none "
            "to train on: remove it"
        )
        return
    yield from _component(stage, told)
    yield from _rule(stage, told)
    yield from _length(stage, surveyed)


def _component(stage: StageConfig, told: CurriculumSettings) -> Iterator[str]:
    if stage.reward is None:
        yield (
            ": a pass rate is of a component of the reward, and the stage has none: give it a "
            "reward, or remove this"
        )
        return
    components = stage.reward.components
    if told.component is not None and told.component not in components:
        hint = nearest(told.component, components)
        yield f".component: there is no component '{told.component}'{hint}"
    elif told.component is None and stage.right_component is None:
        yield (
            ".component: neither is there a component 'correct', nor does an evaluation count one "
            f"that is there: name one of {', '.join(components)}"
        )


def _rule(stage: StageConfig, told: CurriculumSettings) -> Iterator[str]:
    if told.nearest_to is None and not told.leaves_out:
        yield (
            ": changes nothing: set nearest_to (0.5: what is right half of the time comes first; "
            "1: easy to hard), or low or high, beyond which tasks are left out"
        )
    if told.nearest_to is not None and not 0 <= told.nearest_to <= 1:
        yield f".nearest_to: is {told.nearest_to:g}, a pass rate must lie in 0..1"
    if not 0 <= told.low <= told.high <= 1:
        yield (
            f": keeps pass rates from {told.low:g} to {told.high:g}: let low and high be within 0 "
            "to 1, low the smaller one"
        )
        return
    samples = 1 if stage.algorithm is None else stage.algorithm.samples_per_prompt
    if not any(told.is_within(right / samples) for right in range(samples + 1)):
        yield (
            f": no share of {samples} samples (samples_per_prompt) lies within {told.low:g} to "
            f"{told.high:g}, so that every task would be left out: widen low and high"
        )
    if told.rest_epochs < 1:
        yield f".rest_epochs: is {told.rest_epochs}, must be at least 1"
    elif told.rest_epochs > 1 and not told.leaves_out:
        yield (
            f".rest_epochs: is {told.rest_epochs}, and with low 0 and high 1 no task is left out: "
            "set one of them, or remove it"
        )


def _length(stage: StageConfig, surveyed: Survey) -> Iterator[str]:
    """Where groups are filtered nobody knows how many tasks a stage comes to."""
    prompts, algorithm = surveyed.prompts.get(stage.name), stage.algorithm
    if prompts is None or algorithm is None or algorithm.filters_groups:
        return
    taken, epoch = stage.steps * stage.prompts_per_step, prompts.num_train
    steps = epoch // max(1, stage.prompts_per_step) + 1
    if taken <= epoch:
        yield (
            f": acts from the second epoch on, and the stage takes {taken:,} tasks of a first one "
            f"of {epoch:,}: raise steps to {steps:,} or more, give it fewer tasks, or remove this"
        )
