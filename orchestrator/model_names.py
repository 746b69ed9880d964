"""Names of weights and of written data, as a run file says them.

Owns how a name is written and which stage of a run file it means. Whether it fits where it stands
is said in `manta.orchestrator.name_check`, which weights are behind it in
`manta.orchestrator.named_weights`. Loads no torch.

    stage:rl         what stage `rl` left; of a repeated stage, the newest repeat before
    stage:rl@2       what its second repeat left
    step:40          the policy after step 40 of this run
    initial          the weights that the run began with
    soup(a, b)       the average of weights (model soups, arXiv 2203.05482)
    ema(0.99)        the moving average of the policy; only as a reference
    models/base      a Hugging Face folder, or a name on its hub
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.reference_config import StageReferenceConfig
from manta.orchestrator.strict import nearest

STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(@[1-9][0-9]*)?")
"""What a stage may be called; `@K` is the K-th repeat of the stage before the `@`."""

Kind: TypeAlias = Literal["weights", "reward_model", "data", "report"]
"""Of products. `weights`: a Hugging Face folder. `reward_model`: one for sequence classification.
`data`: a folder of written trajectories. `report`: `report.json`."""

_LEAVES: Mapping[str, Kind] = {
    "train": "weights",
    "merge": "weights",
    "generate": "data",
    "annotate": "data",
    "evaluate": "report",
}

_CALL = re.compile(r"([A-Za-z_]+)\((.*)\)", re.DOTALL)
_PREFIX = re.compile(r"([A-Za-z_]+):(?!//)(.*)", re.DOTALL)
_FORMS = "write stage:NAME, step:N, initial, soup(a, b), ema(0.99) or the path of a folder"


@dataclass(frozen=True, slots=True)
class StageName:
    """`repeat` is None where the newest one is meant."""

    stage: str
    repeat: int | None = None

    def __str__(self) -> str:
        return f"stage:{self.stage}" + ("" if self.repeat is None else f"@{self.repeat}")


@dataclass(frozen=True, slots=True)
class StepName:
    step: int

    def __str__(self) -> str:
        return f"step:{self.step}"


@dataclass(frozen=True, slots=True)
class InitialName:
    def __str__(self) -> str:
        return "initial"


@dataclass(frozen=True, slots=True)
class PathName:
    path: str

    def __str__(self) -> str:
        return self.path


Single: TypeAlias = StageName | StepName | InitialName | PathName


@dataclass(frozen=True, slots=True)
class SoupName:
    parts: tuple[Single, ...]

    def __str__(self) -> str:
        return f"soup({', '.join(map(str, self.parts))})"


@dataclass(frozen=True, slots=True)
class EmaName:
    """Starts as the policy when the stage starts, and follows it at every step."""

    decay: float

    def __str__(self) -> str:
        return f"ema({self.decay:g})"


Mixed: TypeAlias = Single | SoupName
ModelName: TypeAlias = Mixed | EmaName


def parse(text: str) -> ModelName:
    """The name that `text` is. Raises ValueError saying what is wrong and how names are written."""
    text = text.strip()
    call = _CALL.fullmatch(text)
    if call is None:
        return _single(text)
    function, inside = call[1], call[2]
    if function == "ema":
        return EmaName(_decay(text, inside))
    if function != "soup":
        raise ValueError(
            f"'{text}': there is no '{function}(...)'{_close(function, 'soup', 'ema')}"
        )
    parts = [part.strip() for part in inside.split(",")]
    if len(parts) < 2 or not all(parts):
        raise ValueError(f"'{text}': a soup is made of two names at least, such as soup(a, b)")
    nested = [part for part in parts if "(" in part or ")" in part]
    if nested:
        raise ValueError(
            f"'{text}': a soup is made of plain names, '{nested[0]}' is none: write out what it is "
            "made of, or give it a name of its own with a merge stage"
        )
    return SoupName(tuple(_single(part) for part in parts))


def parse_mixed(text: str) -> Mixed:
    """As `parse`, for weights that stand still. Raises ValueError for ema(...) too."""
    name = parse(text)
    if isinstance(name, EmaName):
        raise ValueError(
            f"'{text}': a moving average follows a policy that trains, so it can only be the "
            "reference.model of a stage that trains"
        )
    return name


def parse_stage(text: str) -> StageName:
    """`stage:NAME` or `stage:NAME@K`. Raises ValueError for anything else."""
    name = parse(text)
    if not isinstance(name, StageName):
        raise ValueError(f"'{text}' names no stage: write stage:NAME or stage:NAME@K")
    return name


def leaves(stage: StageConfig) -> Kind:
    """What `stage` leaves when it has ended."""
    if stage.kind == "train" and stage.algorithm is not None and stage.algorithm.reward_model:
        return "reward_model"
    return _LEAVES[stage.kind]


def named_stage(run_file: RunFile, name: StageName, reader: StageConfig) -> StageConfig:
    """The stage before `reader` that `name` means: of a repeated one the newest repeat.

    Raises ValueError where there is none, telling one that comes later from one that is unknown.
    """
    before = list(run_file.before(reader))
    found = meant([stage.name for stage in before], name)
    if found is not None:
        return next(stage for stage in before if stage.name == found)
    if name.stage in (reader.name, base_name(reader.name)):
        raise ValueError(f"'{name}' is this very stage: name one that stands before it")
    if meant([stage.name for stage in run_file.stages], name) is not None:
        raise ValueError(
            f"stage '{name.stage}' comes later: name one that stands before this stage, or move it "
            "up"
        )
    known = [stage.name for stage in before]
    if not known:
        raise ValueError(f"there is no stage '{name.stage}' before this one: it is the first")
    wanted = str(name).removeprefix("stage:")
    hint = nearest(wanted, dict.fromkeys([*known, *map(base_name, known)]))
    raise ValueError(f"there is no stage '{wanted}' before this one{hint}")


def meant(stages: Sequence[str], name: StageName) -> str | None:
    """Of `stages`, oldest first, the one that `name` means."""
    if name.repeat is not None:
        exact = f"{name.stage}@{name.repeat}"
        return exact if exact in stages else None
    found = [each for each in stages if name.stage in (each, base_name(each))]
    return found[-1] if found else None


def base_name(stage: str) -> str:
    """`rl` of `rl@2`."""
    return stage.partition("@")[0]


def policy_before(run_file: RunFile, stage: StageConfig) -> StageName | InitialName:
    """The policy as the stages before `stage` leave it."""
    makers = [each.name for each in run_file.before(stage) if each.makes_policy]
    return exact(makers[-1]) if makers else InitialName()


def exact(stage: str) -> StageName:
    """The name of the product of `stage`, which may be a repeat."""
    name, at, repeat = stage.partition("@")
    return StageName(name, int(repeat) if at else None)


def parts_of(name: ModelName) -> tuple[Single, ...]:
    """The names that `name` is made of; of a moving average none."""
    if isinstance(name, EmaName):
        return ()
    return name.parts if isinstance(name, SoupName) else (name,)


def names_in(stage: StageConfig, reference: StageReferenceConfig) -> Iterator[tuple[str, str]]:
    """(key below the stage, name) of every name of weights that `stage` uses; `reference` is what
    its reference is."""
    if stage.start_from is not None:
        yield ".start_from", stage.start_from
    if stage.model is not None:
        yield ".model", stage.model
    for index, model in enumerate(stage.models):
        yield f".models[{index}]", model
    if not stage.compares_with_reference:
        return
    if reference.model is not None:
        yield ".reference.model", reference.model
    for name in reference.combine:
        yield ".reference.combine", name
    if reference.contrast is not None:
        yield ".reference.contrast.toward", reference.contrast.toward
        yield ".reference.contrast.away", reference.contrast.away


def steps_named(run_file: RunFile) -> frozenset[int]:
    """Those N for which the run file says `step:N`, with checkpoints that must be there, and stay.

    What is no name at all is left to `manta.orchestrator.name_check`.
    """
    steps: set[int] = set()
    for stage in run_file.stages:
        for _, text in names_in(stage, run_file.reference_of(stage)):
            for found in re.findall(r"step:\s*([0-9]+)", text):
                steps.add(int(found))
    return frozenset(steps)


def _single(text: str) -> Single:
    prefix = _PREFIX.fullmatch(text)
    if text == "initial":
        return InitialName()
    if not text or "(" in text or ")" in text:
        raise ValueError(f"'{text}' names no weights: {_FORMS}")
    if prefix is None:
        return PathName(text)
    kind, rest = prefix[1], prefix[2].strip()
    if kind == "stage":
        if not STAGE_NAME.fullmatch(rest):
            raise ValueError(
                f"'{text}': '{rest}' is no name of a stage: write stage:NAME, or stage:NAME@K for "
                "the K-th repeat, counted from 1"
            )
        return exact(rest)
    if kind == "step":
        if not rest.isdecimal() or int(rest) < 1:
            raise ValueError(f"'{text}': what follows step: is the number of a step, from 1 on")
        return StepName(int(rest))
    hint = _close(f"{kind}:", "stage:", "step:")
    raise ValueError(f"'{text}': there is no '{kind}:'{hint or '; ' + _FORMS}")


def _decay(text: str, inside: str) -> float:
    try:
        decay = float(inside)
    except ValueError:
        decay = -1.0
    if not 0 < decay < 1:
        raise ValueError(f"'{text}': a decay lies between 0 and 1, such as ema(0.99)")
    return decay


def _close(word: str, *known: str) -> str:
    """`; did you mean 'X'?`, where one of `known` is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
