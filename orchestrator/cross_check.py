"""What must fit together in a run file, checked before anything starts.

Owns every rule between settings that no module beside it has: `model_check`, `staleness_check`,
`length_check`, `colocation_check`, `backend_check` (`learner.backend`), `transport_check` (how
weights travel), `checkpoint_check`, `health_check`, `pool_check` (numbers of workers),
`critic_check`, `pair_check` (losses that compare rows, reward models), `process_check` (implicit
ones), `filter_check`,
`curriculum_check`, `update_check`, `companion_check`, `condition_check` (tags), `teacher_check`,
`adapter_check` (`model.lora`), `name_check` (what stages say of one another), `scorer_check`
(`scorers`, and rewards that call them), `within_check` (`reward.within`), `fit_check` (a named
cluster's nodes) and `vllm_check` of `manta.orchestrator`.
`manta.orchestrator.survey` looks at tokenizer and data, `manta.algorithms.contradictions.check` at
an algorithm alone, `manta.orchestrator.strict` at types.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from manta.actors.backends.settings import BACKEND_NAMES
from manta.algorithms import contradictions
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.registry import build
from manta.envs.rewards.formula import Formula
from manta.orchestrator import survey
from manta.orchestrator.adapter_check import adapter_problems
from manta.orchestrator.backend_check import backend_problems, installed_deepspeed
from manta.orchestrator.checkpoint_check import checkpoint_problems
from manta.orchestrator.colocation_check import colocation_problems
from manta.orchestrator.companion_check import companion_problems, unwritten_problems
from manta.orchestrator.condition_check import condition_problems
from manta.orchestrator.config import EvaluateConfig, RewardConfig, RunFile, StageConfig
from manta.orchestrator.critic_check import critic_problems
from manta.orchestrator.curriculum_check import curriculum_problems
from manta.orchestrator.filter_check import filter_problems
from manta.orchestrator.fit_check import fit_problems
from manta.orchestrator.health_check import health_problems
from manta.orchestrator.installed_vllm import installed_vllm
from manta.orchestrator.length_check import length_problems
from manta.orchestrator.model_check import model_folder_problems, model_problems
from manta.orchestrator.model_names import STAGE_NAME
from manta.orchestrator.name_check import name_problems, reference_problems
from manta.orchestrator.pair_check import pair_problems
from manta.orchestrator.pool_check import pool_problems
from manta.orchestrator.process_check import process_problems
from manta.orchestrator.scorer_check import scorer_problems
from manta.orchestrator.staleness_check import staleness_problems
from manta.orchestrator.strict import nearest
from manta.orchestrator.survey import Survey
from manta.orchestrator.teacher_check import teacher_problems
from manta.orchestrator.transport_check import transport_problems
from manta.orchestrator.update_check import update_problems
from manta.orchestrator.vllm_check import vllm_problems
from manta.orchestrator.within_check import within_problems

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def cross_check(run_file: RunFile, surveyed: Survey | None = None) -> list[str]:
    """Everything that does not fit, one line each, starting with the key; empty if all does.

    `surveyed` spares a second look at the data where the caller has had one.
    """
    problems = [
        *_run(run_file),
        *fit_problems(run_file),
        *model_problems(run_file),
        *_numbers(run_file),
        *pool_problems(run_file),
        *_learner(run_file),
        *_sampling(run_file),
        *transport_problems(run_file),
        *health_problems(run_file.health),
        *checkpoint_problems(run_file),
        *staleness_problems(run_file),
        *colocation_problems(run_file),
        *backend_problems(run_file, installed_deepspeed()),
        *length_problems(run_file),
        *critic_problems(run_file),
        *pair_problems(run_file),
        *process_problems(run_file),
        *condition_problems(run_file),
        *reference_problems(run_file),
        *_stage_names(run_file),
    ]
    for index, stage in enumerate(run_file.stages):
        problems += [f"stages[{index}]{told}" for told in _stage(run_file, stage)]
    vocab_size = None
    if not any(told.startswith("model.") for told in problems):
        seen = surveyed or survey.look(run_file)
        vocab_size = seen.vocab_size
        problems += [*seen.problems, *model_folder_problems(run_file, seen.vocab_size)]
        problems += unwritten_problems(run_file, seen)
        problems += curriculum_problems(run_file, seen)
        installed = installed_vllm() if run_file.rollout.engine == "vllm" else None
        problems += vllm_problems(run_file, seen.vocab_size, installed)
    problems += [*adapter_problems(run_file), *scorer_problems(run_file, vocab_size)]
    return [*problems, *teacher_problems(run_file, vocab_size)]


def _run(run_file: RunFile) -> Iterator[str]:
    run = run_file.run
    if not _NAME.fullmatch(run.name):
        yield (
            f"run.name: '{run.name}' must be letters, digits, '.', '_' and '-', starting with a "
            "letter or digit: it names the run's folder"
        )
    for index, name in enumerate(run.variables):
        if not _VARIABLE.fullmatch(name):
            yield (
                f"run.variables[{index}]: give the name alone, '{name.partition('=')[0]}': its "
                "value is taken from the environment, so that it is not written down"
            )


def _numbers(run_file: RunFile) -> Iterator[str]:
    """Bounds of single values."""
    rollout, learner, reference = run_file.rollout, run_file.learner, run_file.reference
    at_least = {
        "run.max_restarts": (run_file.run.max_restarts, 0),
        "model.context": (run_file.model.context, 2),
        "rollout.threads": (rollout.threads, 0),
        "rollout.devices": (rollout.devices, 0),
        "rollout.max_rows": (rollout.max_rows, 1),
        "rollout.queue_rows": (rollout.rows_ahead, 1),
        "rollout.max_new_tokens": (rollout.max_new_tokens, 1),
        "rollout.simulated.length_sigma": (rollout.simulated.length_sigma, 0),
        "learner.threads": (learner.threads, 0),
        "learner.tokens_per_micro_batch": (learner.tokens_per_micro_batch, 1),
        "learner.weight_decay": (learner.weight_decay, 0),
        "learner.momentum": (learner.momentum, 0),
        "learner.clip_norm": (learner.clip_norm, 0),
        "learner.max_restarts": (learner.max_restarts, 0),
        "learner.warmup_steps": (learner.warmup_steps, 0),
        "reference.workers": (reference.workers, 1),
        "reference.threads": (reference.threads, 0),
        "reference.tokens_per_batch": (reference.tokens_per_batch, 1),
        "environment.groups_per_call": (run_file.environment.groups_per_call, 0),
    }
    for key, (value, least) in at_least.items():
        if value < least:
            yield f"{key}: is {value}, must be at least {least}"
    above_zero = {
        "run.max_hours": run_file.run.max_hours,
        "run.deadline_minutes": run_file.run.deadline_minutes,
        "learner.learning_rate": learner.learning_rate,
        "learner.adam_epsilon": learner.adam_epsilon,
        "reward_workers.deadline_seconds": run_file.reward_workers.deadline_seconds,
        "publish.probe_tolerance": run_file.publish.probe_tolerance,
        "publish.engine_tolerance": run_file.publish.engine_tolerance,
        "rollout.progress_seconds": rollout.progress_seconds,
        "mismatch_guard.warn_kl": run_file.mismatch_guard.warn_kl,
        "rollout.simulated.tokens_per_second": rollout.simulated.tokens_per_second,
        "rollout.simulated.length_median": rollout.simulated.length_median,
    }
    for key, amount in above_zero.items():
        if amount is not None and amount <= 0:
            yield f"{key}: is {amount:g}, must be above 0"
    guard = run_file.mismatch_guard
    if guard.limit_kl < guard.warn_kl:
        yield (
            f"mismatch_guard.limit_kl: is {guard.limit_kl:g}, must be at least warn_kl "
            f"({guard.warn_kl:g}): a run is warned before it is stopped"
        )


def _learner(run_file: RunFile) -> Iterator[str]:
    learner, dtype = run_file.learner, run_file.model.dtype
    if learner.backend not in BACKEND_NAMES and ":" not in learner.backend:
        hint = nearest(learner.backend, BACKEND_NAMES)
        yield f"learner.backend: there is no '{learner.backend}'{hint}"
    for index, beta in enumerate(learner.betas):
        if not 0 <= beta < 1:
            yield f"learner.betas[{index}]: is {beta:g}, must be at least 0 and below 1"
    if learner.precision == "fp32" and dtype != "float32":
        yield (
            f"learner.precision: is fp32 with model.dtype {dtype}: the engines would compute in "
            "another format than the learner; set model.dtype float32, or leave auto"
        )


def _sampling(run_file: RunFile) -> Iterator[str]:
    rollout, context = run_file.rollout, run_file.model.context
    if rollout.max_new_tokens >= context:
        yield (
            f"rollout.max_new_tokens: is {rollout.max_new_tokens}, must be below model.context "
            f"({context}), which also holds the prompt"
        )
    if rollout.ignore_eos and rollout.engine == "simulated":
        yield (
            "rollout.ignore_eos: has no effect on the simulated engine, whose lengths come from "
            "rollout.simulated: remove it"
        )
    trains = [_trains_on_samples(stage) for stage in run_file.stages]
    if not any(trains):
        return
    truncations = {
        "top_p": (rollout.top_p, 1.0),
        "top_k": (rollout.top_k, 0),
    }
    for name, (value, off) in truncations.items():
        if value != off:
            yield (
                f"rollout.{name}: is {value:g}, must be {off:g} while training: the engine's "
                "log-probs would be those of the kept tokens, the learner computes its own over "
                "the whole vocabulary, and their ratio would be wrong"
            )
    if rollout.temperature <= 0:
        yield (
            f"rollout.temperature: is {rollout.temperature:g}, must be above 0 while training: "
            "greedy samples of a prompt are all equal and have no log-probs to learn from"
        )


def _trains_on_samples(stage: StageConfig) -> bool:
    return (
        stage.kind == "train"
        and stage.algorithm is not None
        and stage.algorithm.samples_from == "policy"
    )


def _stage_names(run_file: RunFile) -> Iterator[str]:
    if not run_file.stages:
        yield "stages: there are none, list at least one"
    counts = Counter(stage.name for stage in run_file.stages)
    for index, stage in enumerate(run_file.stages):
        if counts[stage.name] > 1:
            yield f"stages[{index}].name: '{stage.name}' is the name of {counts[stage.name]} stages"
        if not STAGE_NAME.fullmatch(stage.name) or stage.name.isdecimal():
            yield (
                f"stages[{index}].name: '{stage.name}' must be letters, digits, '.', '_' and '-', "
                "and no number"
            )


def _stage(run_file: RunFile, stage: StageConfig) -> Iterator[str]:
    """Problems of one stage, as the rest of the key and what is wrong."""
    algorithm = stage.algorithm
    if stage.kind == "train" and algorithm is None:
        yield ".algorithm: a train stage needs one, such as grpo or sft"
    if stage.kind == "generate" and algorithm is None:
        yield ".algorithm: a generate stage needs one, its samples_per_prompt says how many"
    if stage.kind != "merge" and stage.trajectories is None and stage.env is None:
        yield f".env: a {stage.kind} stage needs an environment, here or at the top"
    yield from name_problems(run_file, stage)
    if stage.kind in ("train", "generate"):
        if stage.steps < 1:
            yield f".steps: is {stage.steps}, a {stage.kind} stage needs at least 1"
    elif stage.steps and stage.kind != "evaluate":
        yield f".steps: is {stage.steps}, stages of kind {stage.kind} have none: remove it"
    if stage.kind not in ("evaluate", "merge"):
        yield from _counts(stage)
    if stage.kind == "evaluate" and stage.evaluate is None:
        yield ".evaluate: an evaluate stage needs this block, here or at the top"
    if stage.learning_rate is not None and stage.learning_rate <= 0:
        yield f".learning_rate: is {stage.learning_rate:g}, must be above 0"
    if stage.warmup_steps is not None and stage.warmup_steps < 0:
        yield f".warmup_steps: is {stage.warmup_steps}, must be at least 0"
    if algorithm is not None:
        yield from _algorithm(run_file, stage, algorithm)
        yield from filter_problems(stage, algorithm)
        yield from update_problems(run_file, stage, algorithm)
        yield from companion_problems(run_file, stage, algorithm)
    if stage.reward is not None:
        yield from _reward(stage.reward)
        yield from within_problems(stage, stage.reward)
    if stage.evaluate is not None:
        yield from _evaluate(stage.evaluate, stage.reward)
        if run_file.rollout.ignore_eos:
            yield (
                ".evaluate: rollout.ignore_eos makes every answer run on past its end, so that "
                "none would be right: remove one of the two"
            )


def _counts(stage: StageConfig) -> Iterator[str]:
    counts = {
        "prompts_per_step": stage.prompts_per_step,
        "updates_per_step": stage.updates_per_step,
        "epochs_per_step": stage.epochs_per_step,
    }
    for name, count in counts.items():
        if count < 1:
            yield f".{name}: is {count}, must be at least 1"
    if min(counts.values()) >= 1 and stage.prompts_per_step % stage.updates_per_step:
        yield (
            f".updates_per_step: {stage.updates_per_step} does not divide prompts_per_step "
            f"({stage.prompts_per_step}): every update of a step takes as many prompts"
        )


def _component_weights(reward: RewardConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    key, names = ".algorithm.component_weights", ", ".join(reward.components)
    if not algorithm.component_weights:
        yield (
            f"{key}: the advantage decoupled takes every component by itself: give those that "
            f"train a weight, of {names}"
        )
    for name in algorithm.component_weights.keys() - reward.components.keys():
        yield f"{key}: there is no component '{name}'{nearest(name, reward.components)}"


def _algorithm(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings
) -> Iterator[str]:
    try:
        contradictions.check(algorithm)
    except ValueError as error:
        yield f".algorithm: {error}"
    learns_from_rewards = (
        stage.kind == "train"
        and algorithm.samples_from == "policy"
        and algorithm.advantage != "none"
    )
    if learns_from_rewards and stage.reward is None:
        yield f".reward: algorithm '{algorithm.name}' learns from rewards, name one"
    if learns_from_rewards and stage.reward is not None and algorithm.advantage == "decoupled":
        yield from _component_weights(stage.reward, algorithm)


def _reward(reward: RewardConfig) -> Iterator[str]:
    if not reward.components:
        yield ".reward.components: there are none, name at least one"
    try:
        Formula(reward.formula).check(reward.components)
    except ValueError as error:
        yield f".reward.formula: {error}"
    for name, component in reward.components.items():
        try:
            build("reward", component.reward, component.options)
        except ValueError as error:
            yield f".reward.components.{name}: {error}"


def _evaluate(evaluate: EvaluateConfig, reward: RewardConfig | None) -> Iterator[str]:
    for name, value in (
        ("every_steps", evaluate.every_steps),
        ("prompts", evaluate.prompts),
        ("samples_per_prompt", evaluate.samples_per_prompt),
    ):
        if value < 1:
            yield f".evaluate.{name}: is {value}, must be at least 1"
    if evaluate.temperature < 0:
        yield f".evaluate.temperature: is {evaluate.temperature:g}, must be at least 0"
    if evaluate.temperature == 0 and evaluate.samples_per_prompt > 1:
        yield (
            f".evaluate.samples_per_prompt: is {evaluate.samples_per_prompt}, and at temperature 0 "
            "all samples of a prompt are the same: set it to 1, or evaluate.temperature above 0"
        )
    if reward is None:
        yield ".reward: evaluation needs a reward whose component it counts"
    elif evaluate.metric not in reward.components:
        hint = nearest(evaluate.metric, reward.components)
        yield f".evaluate.metric: there is no component '{evaluate.metric}'{hint}"
