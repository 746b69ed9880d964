"""Do a stage's rewards, environment and data go with tags by reward, and with feedback that trains?

The algorithm alone is `manta.algorithms.condition_contradictions`', whether prompts fit with their
tags is the survey's to see.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.settings import AlgorithmSettings
from manta.envs.registry import build
from manta.envs.rewards.scope import scope_of
from manta.orchestrator.config import RewardConfig, RunFile, StageConfig
from manta.orchestrator.model_names import named_stage, parse_stage


def condition_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    for index, stage in enumerate(run_file.stages):
        told = [*_tag(stage)]
        if stage.algorithm is not None and stage.kind == "train":
            told += _trained(run_file, stage, stage.algorithm)
        yield from (f"stages[{index}]{each}" for each in told)


def _tag(stage: StageConfig) -> Iterator[str]:
    if stage.tag is None:
        return
    renders = stage.trajectories is None or stage.evaluate is not None
    if stage.kind in ("merge", "annotate") or not renders:
        yield ".tag: no prompt of this stage is sampled or evaluated: remove it"
    condition = None if stage.algorithm is None else stage.algorithm.condition
    if condition is not None and stage.tag not in condition.tags:
        yield (
            f".tag: is {stage.tag!r}, under which no row is learnt: choose one of "
            f"algorithm.condition.tags ({', '.join(map(repr, condition.tags))}), or leave it out "
            "for the best one"
        )


def _trained(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    if algorithm.condition is not None:
        samples = stage.samples_to_train
        if samples and stage.reward is not None:
            yield from _scopes(stage.reward)
        if stage.written_by is not None:
            yield from _written(run_file, stage)
    if algorithm.train_feedback:
        yield from _feedback(stage, algorithm)


def _scopes(reward: RewardConfig) -> Iterator[str]:
    """A row has its tag before it leaves its group."""
    for name, told in reward.components.items():
        try:
            scope = scope_of(name, build("reward", told.reward, told.options))
        except ValueError:
            continue  # told where rewards are checked
        if scope == "batch":
            yield (
                f".reward.components.{name}: looks at a whole step (scope batch), and "
                "algorithm.condition gives rows the tags of their rewards before the step is "
                "there: remove one of the two"
            )


def _written(run_file: RunFile, stage: StageConfig) -> Iterator[str]:
    """Have the groups of this run's own stages rewards that tell them apart?"""
    writer = stage
    try:
        while writer is stage or (writer.kind == "annotate" and writer.reward is None):
            if writer.written_by is None:
                return  # made by another run
            writer = named_stage(run_file, parse_stage(f"stage:{writer.written_by}"), writer)
    except ValueError:
        return  # told by `manta.orchestrator.name_check`
    if writer.reward is None:
        yield (
            f".algorithm.condition: the groups of stage '{writer.name}' have no rewards, so that "
            "all would have the best tag: give that stage a reward, or annotate them with one"
        )


def _feedback(stage: StageConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    if stage.trajectories is not None or stage.env is None:
        return
    if algorithm.samples_from == "given":
        yield (
            ".algorithm.train_feedback: given answers are of one turn, to which no environment "
            "answers: remove it, or set samples_from to policy"
        )
        return
    try:
        single_turn = build("env", stage.env.name, stage.env.options).single_turn
    except (ValueError, OSError):
        return  # told by whoever looks at the data
    if single_turn:
        yield (
            f".algorithm.train_feedback: '{stage.env.name}' is of one turn, and says nothing after "
            "it: use one of several (arithmetic with tries or last_word), or set it to false"
        )
