"""What stages take from others and leave, in words; see `manta.orchestrator.batch_plan`."""

from __future__ import annotations

import math

from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.model_names import leaves
from manta.orchestrator.reference_use import annotated_by, reads_reference
from manta.orchestrator.scorers import called_by


def weights_told(stage: StageConfig) -> list[str]:
    """Which weights, where they are not those that the stage before left."""
    if stage.start_from is not None:
        return [f"starts from the weights of {stage.start_from}"]
    if stage.model is not None:
        return [f"the weights of {stage.model} sample"]
    return []


def tag_told(run_file: RunFile, stage: StageConfig) -> list[str]:
    """What stands before the stage's prompts; where nothing does, that an earlier stage taught the
    policy tags."""
    if stage.prompt_tag:
        return [f"before every prompt stands {stage.prompt_tag!r}"]
    taught = [
        each
        for each in run_file.before(stage)
        if each.algorithm is not None and each.algorithm.condition is not None
    ]
    if not taught or stage.tag is not None:
        return []
    last = taught[-1]
    return [
        f"note: stage '{last.name}' has learnt under tags, the best one {last.prompt_tag!r}, and "
        "here none stands before the prompts: set tag"
    ]


def merge_told(stage: StageConfig) -> str:
    total = math.fsum(stage.weights)
    shares = [f" x {weight / total:.3g}" for weight in stage.weights] or [""] * len(stage.models)
    mixed = ", ".join(f"{m}{share}" for m, share in zip(stage.models, shares, strict=True))
    then = "the policy goes on from it" if stage.becomes_policy else "the policy stays as it is"
    return f"merge stage: the average of {mixed}; {then}"


def annotation_told(run_file: RunFile, stage: StageConfig) -> str:
    what = ["its reward"] if stage.reward is not None else []
    if stage.reference_logprobs:
        what.append(f"the log-probs of {reference_told(run_file, stage)}")
    return (
        f"annotate stage, trains nothing: scores every group once with {' and '.join(what)}, "
        f"{times(stage.prompts_per_step, 'group')} a step"
    )


def reference_told(run_file: RunFile, stage: StageConfig) -> str:
    """What the reference policy is, in words."""
    annotator = annotated_by(run_file, stage)
    if annotator is not None and reads_reference(run_file, stage):
        return f"the reference of stage '{annotator.name}', whose log-probs its groups have"
    settings = run_file.reference_of(stage)
    if settings.combination is not None:
        return f"the model with the logits {settings.combination}"
    told = settings.model or "the weights at the start of the stage"
    refresh = settings.refresh
    if refresh is None:
        return told
    when = f"every {times(refresh.every_steps, 'step')}"
    if refresh.how == "hard":
        return f"{told}, which become the policy's {when}"
    return f"{told}, which move towards the policy's {when} (decay {refresh.decay:g})"


def teacher_told(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    """What a policy learns from a teacher's distributions."""
    told = algorithm.teacher
    which = {0.0: "KL(teacher, policy)", 1.0: "KL(policy, teacher)"}.get(
        told.interpolation,
        f"the distances of both to their mixture, of which the teacher is {told.interpolation:g}",
    )
    return (
        f"no importance ratio: the loss is {which} over the {times(told.top_k, 'token')} that the "
        "teacher finds likeliest and all others together; the teacher is "
        f"{reference_told(run_file, stage)}"
    )


def left_told(stage: StageConfig) -> str:
    return f"leaves stage:{stage.name} ({leaves(stage)}) in products/{stage.name}"


def times(count: int, noun: str, plural: str | None = None) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def scorers_told(run_file: RunFile, stage: StageConfig) -> list[str]:
    """Which models score what the stage samples, what their reward is held against, and what is
    paid within a sample."""
    if stage.reward is None or (stage.kind == "train" and not stage.samples_to_train):
        return []
    called = dict.fromkeys(name for names in called_by(stage.reward).values() for name in names)
    told = [
        f"scorer {name}: {run_file.scorers[name].model}"
        for name in called
        if name in run_file.scorers
    ]
    if stage.reward.gold is not None:
        told.append(f"what trains is held against '{stage.reward.gold}', the gold reward")
    if stage.reward.within:
        parts = [f"{weight:g} * {name}" for name, weight in stage.reward.within.items()]
        told.append(f"within a sample is paid, beside its reward: {' + '.join(parts)}")
    return told


def companion_told(stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    """The row beside each prompt's samples, to be read after their number."""
    return {
        "none": "",
        "greedy": " and a greedy one, its baseline",
        "given": " and its given answer",
        "written": f" and one of {stage.companions_from or 'those written beside them'}",
    }[algorithm.companion]


def curriculum_told(stage: StageConfig) -> list[str]:
    """Which tasks the epochs after the first take, and in which order."""
    told = stage.curriculum
    if told is None:
        return []
    component = told.component or stage.right_component
    order = "shuffled" if told.nearest_to is None else f"those nearest to {told.nearest_to:g} first"
    words = f"from the second epoch on tasks come by their last pass rate ('{component}'), {order}"
    if told.leaves_out:
        rest = times(told.rest_epochs, "epoch")
        words += f"; those not within {told.low:g} to {told.high:g} are left out for {rest}"
    return [words]


def filters_told(algorithm: AlgorithmSettings) -> list[str]:
    """What is left out of training, in the order in which it is looked at."""
    told = []
    for each in algorithm.filters:
        if each.name == "zero_variance":
            told.append("groups of equal rewards are replaced by others")
        elif each.name == "accuracy_band":
            told.append(
                f"groups of which fewer than {each.low:.0%} or more than {each.high:.0%} are right "
                f"by '{each.component}' are replaced by others"
            )
        elif each.name == "process_consistency":
            told.append(
                f"of a group {each.keep} samples train, right ones by '{each.component}' of the "
                f"highest '{each.process}' and as many wrong ones of the lowest"
            )
        else:
            told.append(f"the {each.keep} samples of a group whose rewards vary most train")
    return [f"filters: {'; '.join(told)}"] if told else []
