"""Do the rewards of a stage, and the groups it reads, go with a row beside each prompt's samples?

Whether the environment has answers is the survey's to see, the algorithm alone is
`manta.algorithms.companion_contradictions`'.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.settings import AlgorithmSettings
from manta.envs.registry import build
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.scope import scope_of
from manta.orchestrator.config import RewardConfig, RunFile, StageConfig
from manta.orchestrator.model_names import named_stage, parse_stage


def companion_problems(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings
) -> Iterator[str]:
    """Problems, as the rest of the stage's key and what is wrong."""
    if algorithm.companion == "none":
        return
    if stage.reward is not None:
        yield from _scopes(stage.reward, algorithm)
    if stage.written_by is not None:
        yield from _written(run_file, stage, algorithm)


def _scopes(reward: RewardConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    """A companion is scored by itself, so that what compares samples says nothing of it."""
    try:
        names = Formula(reward.formula).names
    except ValueError:
        return  # told where rewards are checked
    for name in sorted(names & reward.components.keys()):
        told = reward.components[name]
        try:
            scope = scope_of(name, build("reward", told.reward, told.options))
        except ValueError:
            continue
        if scope != "trajectory":
            yield (
                f".reward.formula: '{name}' looks at several samples at once (scope {scope}), and "
                f"the {algorithm.companion} companion is none of them: leave it out of the "
                "formula, or set algorithm.companion to none"
            )


def _written(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    """Do the groups of this run's own stages have one?"""
    writer = stage
    try:
        while writer is stage or writer.kind == "annotate":
            if writer.written_by is None:
                return  # made by another run
            writer = named_stage(run_file, parse_stage(f"stage:{writer.written_by}"), writer)
    except ValueError:
        return  # told by `manta.orchestrator.name_check`
    made = writer.algorithm
    if made is not None and made.companion != algorithm.companion:
        yield (
            f".algorithm.companion: is {algorithm.companion}, and the groups of stage "
            f"'{writer.name}' are made with companion {made.companion}: set the same in both"
        )
