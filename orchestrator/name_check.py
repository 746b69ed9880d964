"""What stages say of other stages' products, of weights by name, and of references.

Owns whether a name may stand where it stands: that what it means is there by then, of the right
kind, and fits the run's model. How names are written is `manta.orchestrator.model_names`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from manta.actors.transports.settings import DIRECT
from manta.algorithms.catalogue import compares_samples
from manta.algorithms.contradictions import check
from manta.envs.records import Json
from manta.envs.tokenizer import FileTokenizer, build_tokenizer
from manta.orchestrator.combination_check import combination_problems
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.model_folder import folder_config, is_missing
from manta.orchestrator.model_names import (
    EmaName,
    ModelName,
    PathName,
    Single,
    SoupName,
    StageName,
    StepName,
    leaves,
    named_stage,
    names_in,
    parse,
    parse_mixed,
    parse_stage,
    parts_of,
)
from manta.orchestrator.reference_config import RefreshConfig

_KEYS = {
    "start_from": ("train",),
    "model": ("generate", "evaluate"),
    "models": ("merge",),
    "weights": ("merge",),
    "trajectories": ("train", "annotate"),
    "companions_from": ("train", "generate"),
    "reference_logprobs": ("annotate",),
    "reference": ("train", "annotate"),
}
_SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""Of a model's config.json: two that agree in these have parameters of the same shapes."""


def name_problems(run_file: RunFile, stage: StageConfig) -> Iterator[str]:
    """One line each, starting with the key below the stage."""
    yield from _misplaced(stage)
    yield from _trajectories(run_file, stage)
    if stage.kind == "merge":
        yield from _merge(stage)
    if stage.kind == "annotate" and stage.reward is None and not stage.reference_logprobs:
        yield (
            ".reward: an annotate stage scores with its reward, or with reference_logprobs: true; "
            "this one has neither"
        )
    reference = run_file.reference_of(stage)
    top = "" if stage.reference else " (from the top)"
    for key, text in names_in(stage, reference):
        where = f"{key}{top}" if key.startswith(".reference") else key
        yield from (f"{where}: {told}" for told in _name(run_file, stage, key, text))
    if stage.compares_with_reference:
        for key, told in _refresh(run_file, stage):
            yield f".reference.refresh{key}{top}: {told}"
        for key, told in combination_problems(reference):
            yield f".reference{key}{top}: {told}"


def reference_problems(run_file: RunFile) -> Iterator[str]:
    """What is said of a reference that nothing is compared with."""
    top = run_file.reference
    told = {"model": top.model, "refresh": top.refresh, "combine": top.combine or None}
    for key, value in {**told, "contrast": top.contrast}.items():
        users = (s for s in run_file.stages if s.compares_with_reference and s.reference is None)
        if value is not None and not any(users):
            yield (
                f"reference.{key}: no stage without a reference block of its own compares with a "
                "reference (algorithm.kl.coef above 0, or reference_logprobs): remove it"
            )


def _misplaced(stage: StageConfig) -> Iterator[str]:
    given = {
        "start_from": stage.start_from is not None,
        "model": stage.model is not None,
        "models": bool(stage.models),
        "weights": bool(stage.weights),
        "trajectories": stage.trajectories is not None,
        "companions_from": stage.companions_from is not None,
        "reference_logprobs": stage.reference_logprobs,
        "reference": stage.reference is not None,
    }
    for key, kinds in _KEYS.items():
        if given[key] and stage.kind not in kinds:
            yield f".{key}: is for stages of kind {' and '.join(kinds)}, this one is {stage.kind}"
    if stage.kind in ("annotate", "merge"):
        unused = {"algorithm": stage.algorithm, "evaluate": stage.evaluate}
        for key, block in unused.items():
            if block is not None:
                yield f".{key}: has no effect in a stage of kind {stage.kind}: remove it"
    can_compare = stage.kind in ("train", "annotate")
    if can_compare and stage.reference and not stage.compares_with_reference:
        what = "algorithm.kl.coef is 0" if stage.kind == "train" else "reference_logprobs is false"
        yield f".reference: nothing in this stage asks for a reference ({what}): remove it"


def _trajectories(run_file: RunFile, stage: StageConfig) -> Iterator[str]:
    if stage.kind == "annotate" and stage.trajectories is None:
        yield ".trajectories: an annotate stage needs some: a folder, or stage:NAME"
    if stage.trajectories is None:
        return
    if stage.written_by is None:
        if not Path(stage.trajectories).is_dir():
            yield f".trajectories: there is no folder '{stage.trajectories}'"
        return
    try:
        writer = named_stage(run_file, parse_stage(stage.trajectories), stage)
    except ValueError as error:
        yield f".trajectories: {error}"
        return
    if leaves(writer) != "data":
        yield (
            f".trajectories: stage '{writer.name}' is of kind {writer.kind} and leaves "
            f"{leaves(writer)}: name a generate or annotate stage"
        )
    elif (maker := _maker(run_file, writer)) is not None:
        yield from _groups(stage, maker)


def _maker(run_file: RunFile, writer: StageConfig) -> StageConfig | None:
    """The stage whose samples `writer` leaves; None where another run made them, or names are
    wrong."""
    while writer.kind == "annotate":
        if writer.written_by is None:
            return None
        try:
            writer = named_stage(run_file, parse_stage(f"stage:{writer.written_by}"), writer)
        except ValueError:
            return None
    return writer


def _groups(stage: StageConfig, maker: StageConfig) -> Iterator[str]:
    """Groups that are smaller than the stage says, and too small for its algorithm."""
    algorithm, made = stage.algorithm, maker.algorithm
    if stage.kind != "train" or algorithm is None or made is None or made.samples_from != "policy":
        return
    if compares_samples(algorithm) and made.rows_per_prompt == 1:
        yield (
            f".trajectories: stage '{maker.name}' makes one sample of a prompt, and algorithm "
            f"'{algorithm.name}' compares a prompt's samples: set samples_per_prompt there to 2 or "
            "more"
        )
    elif (count := made.samples_per_prompt) < algorithm.samples_per_prompt:
        try:
            check(replace(algorithm, samples_per_prompt=count))
        except ValueError as error:
            yield (
                f".trajectories: stage '{maker.name}' makes {count} samples of a prompt, and not "
                f"{algorithm.samples_per_prompt} as said here; with {count}: {error}"
            )


def _merge(stage: StageConfig) -> Iterator[str]:
    if not stage.models:
        yield ".models: a merge stage needs some: names of weights, such as stage:NAME"
    if stage.weights and len(stage.weights) != len(stage.models):
        yield (
            f".weights: there are {len(stage.weights)} for {len(stage.models)} models: give one "
            "each, or none for equal ones"
        )
    elif stage.weights and not (math.fsum(stage.weights) > 0):
        yield f".weights: their sum is {math.fsum(stage.weights):g}, must be above 0"
    soups = [text for text in stage.models if text.lstrip().startswith("soup")]
    if soups and len(stage.models) > 1:
        yield f".models: '{soups[0]}' is a soup: write out what it is made of"


def _name(run_file: RunFile, stage: StageConfig, key: str, text: str) -> Iterator[str]:
    try:
        name: ModelName = parse(text) if key == ".reference.model" else parse_mixed(text)
    except ValueError as error:
        yield str(error)
        return
    if run_file.model.lora is not None:
        yield (
            f"'{text}': with model.lora the policy is an adapter, and its reference the model "
            "without: names of weights need model.lora: null"
        )
        return
    if isinstance(name, EmaName) and stage.kind != "train":
        yield f"'{text}': follows a policy that trains, and a {stage.kind} stage trains none"
    for part in parts_of(name):
        yield from _part(run_file, stage, part)
    if isinstance(name, SoupName) and len(set(map(str, name.parts))) == 1:
        yield f"'{text}': averages one and the same: name that alone"


def _part(run_file: RunFile, stage: StageConfig, part: Single) -> Iterator[str]:
    if isinstance(part, StageName):
        try:
            named = named_stage(run_file, part, stage)
        except ValueError as error:
            yield str(error)
            return
        if leaves(named) != "weights":
            yield (
                f"'{part}': stage '{named.name}' is of kind {named.kind} and leaves "
                f"{leaves(named)}, no weights: name a train or merge stage"
            )
    elif isinstance(part, StepName):
        most = steps_before(run_file, stage)
        if most is not None and part.step > most:
            yield (
                f"'{part}': the run has made {most:,} steps when this stage starts: name an "
                "earlier one"
            )
    elif isinstance(part, PathName):
        yield from (f"'{part}': {told}" for told in _folder(run_file, part.path))


def steps_before(run_file: RunFile, stage: StageConfig) -> int | None:
    """How many steps the run has made when `stage` starts; None where data decides."""
    before = run_file.before(stage)
    if any(each.kind == "annotate" for each in before):
        return None
    return sum(1 if each.kind == "merge" and each.makes_policy else each.steps for each in before)


def _folder(run_file: RunFile, path: str) -> Iterator[str]:
    """Does the model in a folder have the shapes and the tokens of the run's?"""
    if is_missing(path) or (not Path(path).is_dir() and "/" not in path):
        yield "there is no such folder"
    try:
        found = folder_config(path)
        expected = _expected(run_file) if found is not None else {}
    except (OSError, ValueError) as error:
        yield str(error)
        return
    if found is None:
        return
    for key, value in expected.items():
        if key in found and found[key] != value:
            yield (
                f"has {key} {found[key]}, the run's model {value}: weights can only be taken from "
                "a model of the same shape"
            )
    yield from _tokens(run_file, path)


def _tokens(run_file: RunFile, path: str) -> Iterator[str]:
    own = run_file.model.tokenizer or run_file.model.path
    file = Path(path) / "tokenizer.json"
    if own is None or not file.is_file():
        return
    try:
        ours = build_tokenizer(own)
        is_same = isinstance(ours, FileTokenizer) and _words(file) == _words(Path(ours.path))
    except (OSError, ValueError) as error:
        yield f"its tokenizer.json cannot be compared with the run's: {error}"
        return
    if not is_same:
        yield (
            f"its tokenizer.json is another tokenizer than the run's '{own}': its weights belong "
            "to other tokens"
        )


def _words(file: Path) -> tuple[Json, Json]:
    """What decides which id a text becomes."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found.get("model"), found.get("added_tokens")


def _expected(run_file: RunFile) -> dict[str, Json]:
    model = run_file.model
    if model.path is not None:
        return {k: v for k, v in (folder_config(model.path) or {}).items() if k in _SHAPE}
    if model.build is None or model.build.heads < 1 or model.tokenizer is None:
        return {}  # wrong by itself, and told so elsewhere
    vocab_size = build_tokenizer(model.tokenizer).vocab_size
    built = model.build.config(vocab_size, model.context)
    return {key: built[key] for key in _SHAPE}


def _refresh(run_file: RunFile, stage: StageConfig) -> Iterator[tuple[str, str]]:
    """(key below `reference.refresh`, what is wrong)"""
    settings = run_file.reference_of(stage)
    refresh = settings.refresh
    is_named = settings.model is not None and settings.model.strip().startswith("ema(")
    if refresh is None and not is_named:
        return
    if refresh is not None and is_named:
        yield "", "a moving average follows at every step anyway: remove it"
    if refresh is not None:
        yield from _bounds(refresh)
    if stage.kind != "train":
        yield "", "nothing trains in this stage, so there is nothing to follow"
    elif not stage.samples_to_train:
        yield (
            "",
            "a reference follows where the policy is published after every step, and this stage "
            "samples nothing: remove it, or give the stage a reference block without",
        )
    if run_file.model.lora is not None:
        yield "", "with model.lora the reference is the model without its adapter: remove it"
    if run_file.publish.transport in DIRECT:
        transport = run_file.publish.transport
        yield (
            "",
            f"with publish.transport {transport} the weights do not pass where reference workers "
            "get them: choose object_store or disk",
        )


def _bounds(refresh: RefreshConfig) -> Iterator[tuple[str, str]]:
    if refresh.every_steps < 1:
        yield ".every_steps", f"is {refresh.every_steps}, must be at least 1"
    if refresh.how == "ema" and not 0 < refresh.decay < 1:
        yield ".decay", f"is {refresh.decay:g}, must lie between 0 and 1"
