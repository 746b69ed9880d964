"""The run said back in words and numbers.

Owns the arithmetic of batches. What workers ask of a cluster is `manta.orchestrator.role_needs`;
bytes are `manta.orchestrator.memory`.
"""

from __future__ import annotations

import math

from manta.actors.worker_range import RankRange
from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.part_settings import OffPolicySettings
from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.compared_words import compared_told, imitated_told
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.stage_words import (
    annotation_told,
    companion_told,
    curriculum_told,
    filters_told,
    left_told,
    merge_told,
    reference_told,
    scorers_told,
    tag_told,
    teacher_told,
    weights_told,
)
from manta.orchestrator.stage_words import times as _times
from manta.orchestrator.survey import Prompts, Survey


def describe(run_file: RunFile, stage: StageConfig, survey: Survey) -> list[str]:
    """The plan of one stage, one line per thing that a reader may want to check."""
    prompts = survey.prompts.get(stage.name)
    if stage.kind == "merge":
        return [merge_told(stage), left_told(stage)]
    if stage.kind == "annotate":
        data = _data(run_file, stage, prompts)
        return [annotation_told(run_file, stage), *data, left_told(stage)]
    if stage.kind == "evaluate" or stage.algorithm is None:
        lines = [f"{stage.kind} stage, trains nothing"]
    elif stage.kind == "generate":
        lines = [
            f"{stage.kind} stage, trains nothing; {_times(stage.steps, 'step')}",
            _batch(run_file, stage, stage.algorithm, prompts),
        ]
    else:
        lines = [
            _batch(run_file, stage, stage.algorithm, prompts),
            *filters_told(stage.algorithm),
            *curriculum_told(stage),
            _micro_batches(run_file, stage, stage.algorithm, prompts),
            _updates(run_file, stage, prompts),
            _staleness(run_file, stage, stage.algorithm),
            *_long_tail(run_file, stage),
            _ratio(run_file, stage, stage.algorithm),
            *_critic(run_file, stage, stage.algorithm),
            *_reward_model(run_file, stage, stage.algorithm),
            *_implicit_reward(run_file, stage, stage.algorithm),
        ]
        if run_file.rollout.placement == "colocated":
            lines.append(_turns(stage))
    lines += [*weights_told(stage), *tag_told(run_file, stage), *scorers_told(run_file, stage)]
    lines += _data(run_file, stage, prompts)
    return [*lines, *_evaluation(run_file, stage, prompts), left_told(stage)]


def _tokens_per_completion(
    run_file: RunFile, algorithm: AlgorithmSettings, prompts: Prompts | None
) -> tuple[int, int]:
    """(mean prompt plus a full answer, longest prompt plus a full answer), within the context."""
    context = run_file.model.context
    if prompts is None:
        return context, context
    answer = run_file.rollout.max_new_tokens
    if algorithm.samples_from == "given":
        answer = prompts.longest_answer
    elif algorithm.companion == "given":
        answer = max(answer, prompts.longest_answer)
    usual = math.ceil(prompts.mean) + answer
    return min(usual, context), min(prompts.longest + answer, context)


def _batch(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings, prompts: Prompts | None
) -> str:
    samples = algorithm.samples_per_prompt
    count = stage.prompts_per_step * algorithm.rows_per_prompt
    usual, _ = _tokens_per_completion(run_file, algorithm, prompts)
    if algorithm.samples_from == "given":
        what = f"{_times(stage.prompts_per_step, 'prompt')} with given answers a step"
        if algorithm.compares_given and stage.trajectories is None:
            what = (
                f"{_times(stage.prompts_per_step, 'prompt')} x {_times(samples, 'given answer')} = "
                f"{_times(count, 'row')} a step"
            )
        told = "with the longest answer" if prompts is not None else "with a full context"
    else:
        each = f"{_times(samples, 'sample')}{companion_told(stage, algorithm)}"
        each = each if algorithm.companion == "none" else f"({each})"
        noun = "row" if algorithm.companion in ("given", "written") else "completion"
        what = f"{_times(stage.prompts_per_step, 'prompt')} x {each} = {_times(count, noun)} a step"
        told = f"with all {run_file.rollout.max_new_tokens:,} new tokens used"
    mean = "" if prompts is None else f"mean prompt {prompts.mean:,.1f} tokens, "
    return f"{what}, at most about {count * usual:,} tokens ({mean}{told})"


def _micro_batches(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings, prompts: Prompts | None
) -> str:
    """Every row counted as the longest one; the learner cuts by the real lengths."""
    learner = run_file.learner
    _, longest = _tokens_per_completion(run_file, algorithm, prompts)
    rows = stage.prompts_per_step * algorithm.trained_rows // stage.updates_per_step
    rows_per_rank = math.ceil(rows / learner.ranks.min)
    rows_at_once = max(1, learner.tokens_per_micro_batch // longest)
    count = math.ceil(rows_per_rank / rows_at_once)
    return (
        f"about {_times(count, 'micro-batch', 'micro-batches')} an update of at most "
        f"{learner.tokens_per_micro_batch:,} tokens on {_learner_ranks(learner.ranks)}"
    )


def _learner_ranks(ranks: RankRange) -> str:
    if not ranks.is_fixed:
        return f"each of {ranks.min:,} learner ranks, or fewer on up to {ranks.max:,}"
    return "1 learner rank" if ranks.max == 1 else f"each of {ranks.max:,} learner ranks"


def _updates(run_file: RunFile, stage: StageConfig, prompts: Prompts | None) -> str:
    per_step = stage.updates_per_step * stage.epochs_per_step
    schedule = run_file.schedule(stage)
    seen = stage.steps * stage.prompts_per_step
    passes = ""
    if prompts is not None and prompts.num_train > 0:
        passes = f" = {seen / prompts.num_train:,.2f} passes over {prompts.num_train:,} tasks"
    ramp = (
        f" after {_times(schedule.warmup_steps, 'step')} of warm-up"
        if schedule.warmup_steps
        else ""
    )
    fall = ", falling linearly" if schedule.decay == "linear" else ""
    return (
        f"{_times(stage.steps, 'step')} of {_times(per_step, 'update')} "
        f"({stage.updates_per_step:,} x {_times(stage.epochs_per_step, 'epoch')}): "
        f"{_times(stage.steps * per_step, 'update')}, {_times(seen, 'prompt')}{passes}; "
        f"learning rate {schedule.peak:g}{ramp}{fall}"
    )


def _staleness(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    if algorithm.samples_from == "given":
        return "answers are given, so no sample can be stale"
    if stage.trajectories is not None:
        return "samples are given, whatever weights they are of"
    rollout = run_file.rollout
    staleness = run_file.max_staleness(stage)
    groups = (staleness + 1) * stage.prompts_per_step
    begun = math.ceil(stage.prompts_per_step * rollout.oversample)
    if rollout.overtaken == "carry_over":
        return (
            f"{_times(begun, 'group')} begin, the first {stage.prompts_per_step:,} to finish "
            "train; those overtaken go on, and a sample may be up to "
            f"{_times(staleness, 'version')} behind the weights that learn from it"
        )
    if staleness == 0 and rollout.oversample > 1:
        return (
            f"on-policy: {_times(begun, 'group')} begin, the first {stage.prompts_per_step:,} to "
            f"finish train; those overtaken train {stage.prompts_per_step:,} at a time, in steps "
            "of their own"
        )
    if staleness == 0:
        return (
            f"on-policy: at most {_times(groups, 'group')} in flight, every sample from the "
            "newest weights when its step begins"
        )
    told = (
        f"at most {_times(groups, 'group')} in flight, so a sample may be up to "
        f"{_times(staleness, 'version')} behind the weights that learn from it"
    )
    if algorithm.proximal == "learner" and algorithm.off_policy.correction == "none":
        told += "; note: nothing corrects for it, see off_policy in docs/algorithms.md"
    limit = staleness if rollout.max_token_age is None else rollout.max_token_age
    if limit >= staleness:
        return told
    what = {
        "drop_and_replace": "groups with tokens that are more than {} behind are made anew",
        "mask_tokens": "tokens that are more than {} behind leave the loss",
    }[rollout.when_too_old]
    return f"{told}; {what.format(_times(limit, 'version'))}"


def _turns(stage: StageConfig) -> str:
    when = "every step" if stage.samples_to_train else "every evaluation"
    return (
        "learner and engines share a device: engines sleep while it trains, and wake with its new "
        f"weights at {when}"
    )


def _long_tail(run_file: RunFile, stage: StageConfig) -> list[str]:
    """What keeps the longest samples from holding a step up, where anything does."""
    rollout, told = run_file.rollout, []
    if not stage.samples_to_train:
        return []
    assert stage.algorithm is not None
    if rollout.redundant_samples:
        samples = stage.algorithm.samples_per_prompt
        told.append(
            f"a group begins {samples + rollout.redundant_samples:,} samples and is complete with "
            f"the first {samples:,} that end; note: those are the shorter ones, hold "
            "length/mean against length/begun_mean"
        )
    cap = rollout.cap
    if cap is not None:
        bound = (
            _times(cap.tokens, "token")
            if cap.tokens is not None
            else f"{cap.medians:g} times the running median of lengths"
        )
        what = {"truncate": "trains as it is", "mask": "carries no loss"}[cap.then]
        told.append(f"a sample has at most {bound}; one that a bound ends {what}")
    return told


def _ratio(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    if algorithm.is_coupled:
        return compared_told(run_file, stage, algorithm)
    if algorithm.loss == "cross_entropy":
        return (
            "no importance ratio: cross-entropy needs no log-probs of a behaviour policy"
            f"{imitated_told(algorithm)}"
        )
    if LOSS_KINDS[algorithm.loss].needs_likeliest:
        return teacher_told(run_file, stage, algorithm)
    if algorithm.loss == "policy_gradient":
        return (
            f"no importance ratio: nothing bounds an update{_charged(run_file, stage, algorithm)}"
        )
    charges_kl = algorithm.kl.coef != 0 and algorithm.kl.placement == "reward"
    is_only_update = stage.updates_per_step * stage.epochs_per_step == 1
    needs_pass = charges_kl or algorithm.chooses_tokens or not is_only_update
    if algorithm.proximal == "learner" and not needs_pass:
        told = (
            "the ratio's denominator is the learner's own log-probs: with one update a step they "
            "need no pass of their own"
        )
    elif algorithm.proximal == "learner":
        told = (
            "the ratio's denominator is recomputed by the learner in one pass without gradients "
            "before the step's first update"
        )
    else:
        told = "the ratio's denominator is the engine's own log-probs, nothing is recomputed"
    return told + _charged(run_file, stage, algorithm)


def _charged(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> str:
    """What weighs tokens, and what is charged to them."""
    told = _correction(algorithm.off_policy)
    if algorithm.kl.coef != 0:
        kl = algorithm.kl
        told += (
            f"; KL to {reference_told(run_file, stage)}, {kl.coef:g} x {kl.estimator} in the "
            f"{kl.placement}"
        )
        if kl.discount != 1:
            told += f", discounted by {kl.discount:g} a token"
        if kl.target is not None:
            told += f", from there on whatever keeps it at {kl.target:g} nats a sample"
    if algorithm.advantage == "none":
        told += "; no rewards train, the KL alone does"
    return told


def _critic(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> list[str]:
    critic = algorithm.critic
    if critic is None:
        return []
    whose = {
        "shared": "a head on the policy's trunk",
        "own": f"a model of its own that starts from {critic.path or 'the policy'}",
    }[critic.model]
    peak = critic.learning_rate or run_file.schedule(stage).peak
    alone = critic.warmup_steps
    told = (
        f"critic: {whose}, learning rate {peak:g}; its values are computed in one pass without "
        "gradients before the step's first update"
    )
    if alone:
        told += f"; it trains alone for the first {_times(alone, 'step')}"
    return [told]


def _reward_model(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> list[str]:
    told = algorithm.reward_model
    if told is None:
        return []
    peak = told.learning_rate or run_file.schedule(stage).peak
    return [
        f"reward model: a model of its own that starts from {told.path or 'the policy'}, learning "
        f"rate {peak:g}; it alone trains, the policy stays as it is"
    ]


def _implicit_reward(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings
) -> list[str]:
    told = algorithm.implicit_reward
    if told is None:
        return []
    peak = told.learning_rate or run_file.schedule(stage).peak
    return [
        f"implicit reward model: a model of its own that starts from {told.path or 'the policy'}, "
        f"learning rate {peak:g}; a token's reward is {told.beta:g} x its log-ratio to "
        f"{reference_told(run_file, stage)}, {told.scores} the model learns from the step; a row "
        f"is right whose reward is above {told.outcome_above:g}"
    ]


def _correction(settings: OffPolicySettings) -> str:
    """What weighs a token by the learner's probability of it over the engine's."""
    if settings.correction == "none":
        return ""
    whose = "each token" if settings.level == "token" else "each row"
    told = f"; {whose} weighs as much as its probability under learner over engine"
    if settings.correction == "weight":
        return told
    if settings.correction == "truncate":
        return f"{told}, at most {settings.high:g}"
    bounds = (("below", settings.low), ("above", settings.high))
    outside = " or ".join(f"{side} {bound:g}" for side, bound in bounds if bound is not None)
    return f"{told}, and 0 {outside}"


def _data(run_file: RunFile, stage: StageConfig, prompts: Prompts | None) -> list[str]:
    if stage.trajectories is not None:
        verb = "reads" if stage.kind == "annotate" else "learns from"
        return [f"{verb} the trajectories in {stage.trajectories}"]
    if prompts is None or prompts.num_measured == 0:
        return []
    measured = f"{prompts.num_measured:,} prompts measured"
    lines = [f"{measured}, the longest is task {prompts.longest_id} with {prompts.longest:,}"]
    room = run_file.model.context - prompts.longest
    wanted = run_file.rollout.max_new_tokens
    if room < wanted:
        lines.append(
            f"note: with a context of {run_file.model.context:,} that task's answers end after "
            f"{room:,} of {wanted:,} new tokens"
        )
    return lines


def _evaluation(run_file: RunFile, stage: StageConfig, prompts: Prompts | None) -> list[str]:
    evaluate = stage.evaluate
    if evaluate is None:
        return ["no evaluation"]
    count = evaluate.prompts if prompts is None else min(evaluate.prompts, prompts.num_eval)
    when = f"every {_times(evaluate.every_steps, 'step')}" if stage.kind == "train" else "once"
    return [
        f"evaluation {when}: {_times(count, 'held-out prompt')} x "
        f"{_times(evaluate.samples_per_prompt, 'sample')} at temperature "
        f"{evaluate.temperature:g}, accuracy by '{evaluate.metric}'"
    ]
