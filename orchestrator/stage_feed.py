"""How a training stage admits groups: feed and curriculum, what is too old to train, and the cap on
lengths.

Owns what of the run file decides these. How they work is theirs.
"""

from __future__ import annotations

import math

from manta.envs.sources.order import EpochOrder
from manta.orchestrator.age_policy import AgePolicy
from manta.orchestrator.carrying_feed import CarryingFeed
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.curriculum import Curriculum
from manta.orchestrator.feed import Feed, FeedState, TaskOrder
from manta.orchestrator.length_cap import LengthCap
from manta.orchestrator.racing_feed import RacingFeed
from manta.orchestrator.supply import Finished

GIVEN_PREFETCH = 1
"""Steps of given answers that are made ready ahead: they cannot be stale."""


def stage_feed(run_file: RunFile, stage: StageConfig, order: TaskOrder) -> Feed[Finished]:
    """The feed of `stage`, from its start."""
    prompts = stage.prompts_per_step
    if not stage.samples_to_train:
        return Feed(order, (GIVEN_PREFETCH + 1) * prompts, run_file.run.deterministic)
    staleness = run_file.max_staleness(stage)
    if run_file.rollout.oversample > 1:
        slots = math.ceil(prompts * run_file.rollout.oversample)
        if run_file.rollout.overtaken == "carry_over":
            return CarryingFeed(order, prompts, slots, staleness)
        return RacingFeed(order, prompts, slots)
    slots = (staleness + 1) * prompts
    return Feed(order, slots, run_file.run.deterministic)


def stage_ages(run_file: RunFile, stage: StageConfig) -> AgePolicy:
    """What is too old to train in `stage`."""
    if not stage.samples_to_train:
        return AgePolicy()
    rollout = run_file.rollout
    limit = rollout.max_token_age
    if limit is None:
        limit = run_file.max_staleness(stage)
    return AgePolicy(limit, rollout.when_too_old)


def stage_cap(run_file: RunFile, stage: StageConfig, state: FeedState | None) -> LengthCap | None:
    """The cap on lengths of `stage`, if any; `state` is a checkpoint's, with the running median."""
    rollout = run_file.rollout
    if rollout.cap is None or not stage.samples_to_train:
        return None
    median = None if state is None else state.median_length
    return LengthCap(rollout.cap, rollout.max_new_tokens, median)


def stage_curriculum(
    stage: StageConfig, first: EpochOrder, step: int, state: FeedState | None
) -> Curriculum | None:
    """The curriculum of `stage`, if any, from `step` on; `first` is the order of its first epoch,
    `state` a checkpoint's. Raises ValueError where that is of other tasks."""
    settings = stage.curriculum
    if settings is None:
        return None
    component = settings.component or stage.right_component
    assert component is not None
    curriculum = Curriculum(settings, component, first, step)
    if state is not None and state.curriculum is not None:
        curriculum.restore(state.curriculum)
    return curriculum
