"""What a stage compares, labels or chooses of its samples, in words.

Part of what `manta.orchestrator.batch_plan` says back.
"""

from __future__ import annotations

import math

from manta.algorithms.condition import ConditionSettings
from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.stage_words import reference_told
from manta.orchestrator.stage_words import times as _times


def compared_told(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    """Of a loss that couples rows."""
    if algorithm.loss == "pacs":
        return _questions(algorithm)
    told = _pairs if algorithm.is_paired else _labels
    return told(run_file, stage, algorithm) + _unbounded(stage, algorithm)


def _unbounded(stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    """What several updates on the same fresh samples do to a policy that no ratio holds."""
    updates = stage.updates_per_step * stage.epochs_per_step
    if updates == 1 or not stage.samples_to_train or algorithm.reward_model is not None:
        return ""
    return (
        f"; note: no ratio bounds how far the {updates} updates of a step take the policy from its "
        "samples, one learns more"
    )


def _labels(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    point = {
        "samples": "the KL to it, estimated from the samples",
        "other_class": "the mean log-ratio of the other class",
        "zero": "0",
    }[algorithm.reference_point]
    return (
        f"labels: a sample is desirable if its reward is above {algorithm.desirable_above:g}; "
        f"every one counts, desirable ones {algorithm.desirable_weight:g} times, others "
        f"{algorithm.undesirable_weight:g}; the loss is KTO with beta {algorithm.beta:g} against "
        f"{reference_told(run_file, stage)}, its reference point {point}"
    )


def _questions(algorithm: AlgorithmSettings) -> str:
    balanced = ", both classes of a prompt count the same" if algorithm.balance_classes else ""
    policy = {"learner": "the learner's own", "behaviour": "the engine's"}[algorithm.proximal]
    return (
        f"labels: a sample is right if its reward is above {algorithm.desirable_above:g}{balanced};"
        " every prompt counts the same; the loss is PACS over all samples of a prompt, with beta "
        f"{algorithm.beta:g} against {policy} log-probs at the start of the step"
    )


def imitated_told(algorithm: AlgorithmSettings) -> str:
    """Which rows of a group are imitated, where not all are alike; starts with a semicolon."""
    told = ""
    if algorithm.keep_best:
        told += f"; of each prompt's samples the best {algorithm.keep_best:,} are imitated"
    if algorithm.keep_above is not None:
        told += f"; samples whose reward is {algorithm.keep_above:g} or less are left out"
    if algorithm.reward_temperature is not None:
        told += f"; a row weighs exp(reward / {algorithm.reward_temperature:g})"
    if algorithm.condition is not None:
        told += f"; a row is learnt under the tag of its reward: {_classes(algorithm.condition)}"
    if algorithm.train_feedback:
        told += "; what the environment says after the policy's first turn is learnt too"
    return told


def _classes(condition: ConditionSettings) -> str:
    parted = zip(condition.tags, condition.bounds, strict=False)
    up_to = [f"{tag!r} up to {bound:g}" for tag, bound in parted]
    return f"{', '.join(up_to)}, else {condition.best!r}"


def _pairs(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    """What is compared with what, and how much of it there is at most."""
    which = {
        "best_worst": "each prompt's best sample with its worst",
        "all": "every two samples of a prompt whose rewards differ",
        "companion": "every sample with the row beside it, where their rewards differ",
    }[algorithm.pairs]
    if algorithm.pair_margin:
        which += f", by {algorithm.pair_margin:g} at least"
    samples, prompts = algorithm.samples_per_prompt, stage.prompts_per_step
    each = {"best_worst": 1, "all": math.comb(samples, 2), "companion": samples}
    most = prompts * each[algorithm.pairs]
    counts = {"pair": "every pair", "group": "every prompt"}.get(algorithm.unit, "every row")
    # How many samples a written group has is not known here
    bound = "" if stage.trajectories is not None else f", at most {_times(most, 'pair')} a step"
    by_token = ", log-probs averaged over tokens" if algorithm.length_normalized else ""
    beta = f"with beta {algorithm.beta:g}{by_token}"
    loss = {
        "dpo": f"DPO {beta} against",
        "xpo": f"XPO {beta} and exploration coefficient {algorithm.exploration_coef:g} against",
        "ipo": f"IPO {beta} against",
        "simpo": f"SimPO {beta} and a target margin of {algorithm.target_margin:g}",
        "bradley_terry": "Bradley-Terry on the scores of a reward model",
    }[algorithm.loss]
    weighed = ""
    if algorithm.margin_weight is not None:
        at = algorithm.margin_weight.threshold
        weighed = f", times a weight of the pair by its margin (1 at {at:.3g})"
    if algorithm.needs_reference:
        loss += f" {reference_told(run_file, stage)}"
    return (
        f"pairs: {which}{bound}; {counts} counts the same{weighed}; prompts without one are "
        f"filtered; the loss is {loss}"
    )
