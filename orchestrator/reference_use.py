"""Which stages have the reference model score what they make or read."""

from __future__ import annotations

from manta.algorithms.catalogue import reference_top_k
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.model_names import named_stage, parse_stage
from manta.orchestrator.reference_config import StageReferenceConfig


def annotated_by(run_file: RunFile, stage: StageConfig) -> StageConfig | None:
    """The stage of this run that gave the groups which `stage` reads their reference log-probs."""
    if stage.written_by is None:
        return None
    try:
        writer = named_stage(run_file, parse_stage(f"stage:{stage.written_by}"), stage)
    except ValueError:
        return None  # told by `manta.orchestrator.name_check`
    return writer if writer.reference_logprobs else annotated_by(run_file, writer)


def reads_reference(run_file: RunFile, stage: StageConfig) -> bool:
    """Do the groups that `stage` trains on come with the log-probs that it compares with?

    They do where an annotate stage made them, and `stage` says of its reference what that stage
    does, or nothing. What came from another run counts for nothing: its reference is not known.
    Nobody writes what a reference finds likely for a stage that learns from that.
    """
    annotator = annotated_by(run_file, stage) if stage.kind == "train" else None
    if annotator is None or (stage.algorithm is not None and reference_top_k(stage.algorithm)):
        return False
    told = run_file.reference_of(stage)
    return told in (StageReferenceConfig(), run_file.reference_of(annotator))


def needs_reference(run_file: RunFile, stage: StageConfig) -> bool:
    """Does the reference model score what `stage` makes, or reads?"""
    return stage.compares_with_reference and not reads_reference(run_file, stage)


def stages_with_reference(run_file: RunFile) -> tuple[StageConfig, ...]:
    return tuple(stage for stage in run_file.stages if needs_reference(run_file, stage))
