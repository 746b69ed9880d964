"""What scorers, the rewards that call them, and the stages that make their models must agree on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from manta.actors.scorers.settings import ScorerConfig
from manta.envs.records import Json
from manta.envs.registry import build
from manta.envs.rewards.formula import Formula
from manta.envs.rewards.scope import scorer_kind_of
from manta.orchestrator.config import RewardConfig, RunFile, StageConfig
from manta.orchestrator.model_folder import folder_config, is_missing, length_problems
from manta.orchestrator.model_names import leaves, named_stage, parse_stage
from manta.orchestrator.scorers import called_by, called_in
from manta.orchestrator.strict import nearest

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def scorer_problems(run_file: RunFile, vocab_size: int | None) -> Iterator[str]:
    """One line each, starting with the key; `vocab_size` is the policy's tokenizer's."""
    used = called_in(run_file)
    for name, scorer in run_file.scorers.items():
        if not _NAME.fullmatch(name):
            yield f"scorers.{name}: a scorer's name is letters, digits, '.', '_' and '-'"
        yield from (f"scorers.{name}{told}" for told in _numbers(run_file, scorer))
        if name not in used:
            yield (
                f"scorers.{name}: no reward calls it: name it in a component, such as "
                f"{{reward: reward_model, scorer: {name}}}, or remove it"
            )
        if not scorer.is_product:
            told_of = _folder(run_file, scorer, vocab_size)
            yield from (f"scorers.{name}.model: {told}" for told in told_of)
    for index, stage in enumerate(run_file.stages):
        if stage.reward is not None:
            for told in (*_calls(run_file, stage, stage.reward), *_gold(stage.reward)):
                yield f"stages[{index}].reward{told}"


def _numbers(run_file: RunFile, scorer: ScorerConfig) -> Iterator[str]:
    at_least = {"workers": 1, "threads": 0, "devices": 0, "tokens_per_batch": 1}
    for key, least in at_least.items():
        value: int = getattr(scorer, key)
        if value < least:
            yield f".{key}: is {value}, must be at least {least}"
    if scorer.devices > 1:
        yield f".devices: is {scorer.devices}: a worker computes on one GPU at most, set 1 or 0"
    limit = run_file.reward_workers.deadline_seconds
    if scorer.deadline_seconds <= 0:
        yield f".deadline_seconds: is {scorer.deadline_seconds:g}, must be above 0"
    elif scorer.deadline_seconds > limit:
        yield (
            f".deadline_seconds: is {scorer.deadline_seconds:g}, but a component has "
            f"{limit:g} s for its answer: raise reward_workers.deadline_seconds"
        )


def _calls(run_file: RunFile, stage: StageConfig, reward: RewardConfig) -> Iterator[str]:
    """The components of a stage that call scorers, as the rest of the key and what is wrong."""
    for component, called in called_by(reward).items():
        for name in called:
            if name not in run_file.scorers:
                hint = nearest(name, run_file.scorers) or "; add it under scorers"
                yield f".components.{component}.scorer: there is no scorer '{name}'{hint}"
                continue
            yield from _kind(component, name, run_file.scorers[name], reward)
            if run_file.scorers[name].is_product:
                for told in _maker(run_file, stage, run_file.scorers[name]):
                    yield f".components.{component}: scorer '{name}': {told}"


def _kind(component: str, name: str, scorer: ScorerConfig, reward: RewardConfig) -> Iterator[str]:
    """A component that needs what models of another kind say."""
    told = reward.components[component]
    wanted = scorer_kind_of(build("reward", told.reward, told.options))
    if wanted is not None and wanted != scorer.kind:
        yield (
            f".components.{component}: scorer '{name}' is of kind {scorer.kind}, and this reward "
            f"needs what those of kind {wanted} say: set scorers.{name}.kind"
        )


def _maker(run_file: RunFile, reader: StageConfig, scorer: ScorerConfig) -> Iterator[str]:
    """The stage that a model is named after, for the stage that is scored with it."""
    try:
        maker = named_stage(run_file, parse_stage(scorer.model), reader)
    except ValueError as error:
        yield str(error)
        return
    if leaves(maker) == scorer.product_kind:
        return
    if scorer.kind == "reward_model":
        yield (
            f"stage '{maker.name}' leaves {leaves(maker)}, no reward model: name a train stage of "
            "algorithm reward_model"
        )
    else:
        yield f"stage '{maker.name}' leaves {leaves(maker)}, no weights: name one that trains"


def _gold(reward: RewardConfig) -> Iterator[str]:
    if reward.gold is None:
        return
    if reward.gold not in reward.components:
        hint = nearest(reward.gold, reward.components)
        yield f".gold: there is no component '{reward.gold}'{hint}"
        return
    try:
        formula = Formula(reward.formula)
    except ValueError:
        return
    if reward.gold in formula.names:
        yield (
            f".gold: '{reward.gold}' stands in the formula: what trains cannot be held against "
            "itself; name a component outside of it"
        )


def _folder(run_file: RunFile, scorer: ScorerConfig, vocab_size: int | None) -> Iterator[str]:
    """Hub names are looked at when the model is loaded."""
    path = scorer.model
    if is_missing(path):
        yield f"there is no folder '{path}'"
    elif not Path(path).is_dir() and "/" not in path:
        hint = nearest(path, [stage.name for stage in run_file.stages])
        yield f"'{path}' is no folder; the product of a stage is named stage:NAME{hint}"
    try:
        config = folder_config(path)
    except ValueError as error:
        yield str(error)
        return
    if config is not None:
        if scorer.kind == "reward_model":
            yield from _classifier(path, config)
        elif _architectures(config) and "ForCausalLM" not in _architectures(config):
            yield (
                f"'{path}' holds a {_architectures(config)}, a scorer of kind logprobs is a "
                "...ForCausalLM"
            )
        yield from _config(run_file, path, config, vocab_size)


def _architectures(config: Mapping[str, Json]) -> str:
    kinds = config.get("architectures")
    return ", ".join(map(str, kinds)) if isinstance(kinds, list) else ""


def _classifier(path: str, config: Mapping[str, Json]) -> Iterator[str]:
    kinds = _architectures(config)
    if kinds and "ForSequenceClassification" not in kinds:
        yield (
            f"'{path}' holds a {kinds}, a reward model is a ...ForSequenceClassification with one "
            "output"
        )
        return
    labels = config.get("id2label")
    # transformers leaves two labels out of the file, since that is its default
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count != 1:
        yield f"the model in '{path}' has {count} outputs, a reward model has one (num_labels 1)"


def _config(
    run_file: RunFile, path: str, config: Mapping[str, Json], vocab_size: int | None
) -> Iterator[str]:
    yield from length_problems(config, path, run_file.model.context)
    known = config.get("vocab_size")
    has_own = (Path(path) / "tokenizer.json").is_file()
    if vocab_size is not None and isinstance(known, int) and known < vocab_size and not has_own:
        yield (
            f"the model in '{path}' knows {known:,} tokens and has no tokenizer.json, the policy's "
            f"tokenizer has {vocab_size:,}: it was made for another tokenizer"
        )
