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
from manta.orchestrator.model_names import (
    EmaName,
    InitialName,
    ModelName,
    StageName,
    exact,
    leaves,
    named_stage,
    parse,
    parse_stage,
    policy_before,
)
from manta.orchestrator.survey import Survey


def companion_problems(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings
) -> Iterator[str]:
    """Problems, as the rest of the stage's key and what is wrong."""
    yield from _source(run_file, stage, algorithm)
    if algorithm.companion == "none":
        return
    if stage.reward is not None:
        yield from _scopes(stage.reward, algorithm)
    if stage.written_by is not None:
        yield from _written(run_file, stage, algorithm)


def unwritten_problems(run_file: RunFile, surveyed: Survey) -> Iterator[str]:
    """Stages with tasks of which the stage that writes their companions will write no sample."""
    for index, stage in enumerate(run_file.stages):
        prompts, writer = surveyed.prompts.get(stage.name), companion_writer(run_file, stage)
        if prompts is None or writer is None or not _takes_written(stage):
            continue
        written = writer.steps * writer.prompts_per_step
        if written < prompts.num_train:
            steps = -(-prompts.num_train // max(1, writer.prompts_per_step))
            yield (
                f"stages[{index}].companions_from: stage '{writer.name}' writes samples of "
                f"{written:,} tasks, and the environment has {prompts.num_train:,}: let it make "
                f"{steps:,} steps, so that there is a row to stand beside the samples of each"
            )


def _takes_written(stage: StageConfig) -> bool:
    """Does it make groups whose companions another stage has written?"""
    return (
        stage.kind in ("train", "generate")
        and stage.trajectories is None
        and stage.algorithm is not None
        and stage.algorithm.companion == "written"
    )


def _source(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    """Where the rows of kind `written` come from."""
    key, named = ".companions_from", stage.companions_from
    if not _takes_written(stage):
        if named is not None:
            yield (
                f"{key}: this stage makes no groups with a companion of kind written "
                f"(algorithm.companion is {algorithm.companion}): remove it"
            )
        return
    if named is None:
        yield (
            f"{key}: algorithm.companion is written: say whose samples stand beside those of this "
            "stage, stage:NAME of a generate stage"
        )
        return
    try:
        left = named_stage(run_file, parse_stage(named), stage)
    except ValueError as error:
        yield f"{key}: {error}"
        return
    if leaves(left) != "data":
        yield (
            f"{key}: stage '{left.name}' is of kind {left.kind} and leaves {leaves(left)}: name a "
            "generate or annotate stage"
        )
        return
    writer = companion_writer(run_file, stage)
    if writer is None:
        return
    if writer.env != stage.env:
        yield (
            f"{key}: the tasks of stage '{writer.name}' are those of another environment: give "
            "both stages the same one, with the same options"
        )
    if algorithm.loss == "xpo":
        yield from (f"{key}: {told}" for told in _of_reference(run_file, stage, writer))


def companion_writer(run_file: RunFile, stage: StageConfig) -> StageConfig | None:
    """The generate stage that the companions of `stage` are of; None where another run made them,
    or where the name is wrong."""
    if stage.companions_from is None:
        return None
    try:
        writer = named_stage(run_file, parse_stage(stage.companions_from), stage)
        while writer.kind == "annotate":
            if writer.written_by is None:
                return None
            writer = named_stage(run_file, parse_stage(f"stage:{writer.written_by}"), writer)
    except ValueError:
        return None
    return writer if writer.kind == "generate" else None


def _of_reference(run_file: RunFile, stage: StageConfig, writer: StageConfig) -> Iterator[str]:
    """XPO compares with samples of its reference, which were drawn before the stage."""
    if writer.algorithm is not None and writer.algorithm.samples_from == "given":
        yield (
            f"stage '{writer.name}' writes given answers, and XPO compares with samples of the "
            "reference: name a stage that samples"
        )
        return
    told = run_file.reference_of(stage)
    if told.refresh is not None or told.is_average:
        yield (
            "the reference of this stage follows the policy, and XPO compares with samples of it "
            "that are written beforehand: remove reference.refresh, or the moving average"
        )
        return
    try:
        sampled = _named(run_file, writer, writer.model)
        reference = _named(run_file, stage, told.model or stage.start_from)
    except ValueError:
        return  # told by `manta.orchestrator.name_check`
    if run_file.model.lora is not None:
        reference = InitialName()
    if sampled != reference:
        yield (
            f"stage '{writer.name}' samples from '{sampled}', and the reference of this stage is "
            f"'{reference}': XPO compares with samples of the reference, so name the same weights "
            f"in reference.model and in the model of stage '{writer.name}'"
        )


def _named(run_file: RunFile, stage: StageConfig, text: str | None) -> ModelName:
    """The weights that `text` means in `stage`; None: the policy as the stages before leave it.
    Raises ValueError as the parsing of names does."""
    if text is None:
        return policy_before(run_file, stage)
    name = parse(text)
    assert not isinstance(name, EmaName), "it follows a policy"
    return exact(named_stage(run_file, name, stage).name) if isinstance(name, StageName) else name


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
