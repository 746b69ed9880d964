"""Engines by name, and how each is built from a run file's values."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from manta.actors.engines.occupancy import Occupancy
from manta.actors.engines.protocol import Engine
from manta.actors.engines.settings import EngineSettings
from manta.actors.models.spec import ModelSpec
from manta.envs.records import WeightVersion


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is built from. `seed` and `vocab_size` are those of the learner's model, so
    that both begin with the same weights; these are then called `version`. The engine tells
    `occupancy` how many rows it holds. `direct` is the transport by which its processes take
    weights from learner ranks themselves, if any."""

    settings: EngineSettings
    model: ModelSpec
    vocab_size: int
    seed: int
    deterministic: bool
    version: WeightVersion
    occupancy: Occupancy
    direct: str | None = None


# Each builder imports its engine itself: a simulated worker should not load transformers.


def _embedded(parts: EngineParts) -> Engine:
    from manta.actors.engines.embedded import EmbeddedEngine
    from manta.actors.models.causal import build_model

    return EmbeddedEngine(
        build_model(parts.model, parts.vocab_size, parts.seed),
        parts.model.context,
        parts.settings.max_rows,
        parts.settings.threads,
        parts.deterministic,
        parts.version,
        parts.occupancy,
        parts.settings.kv_on_publish == "keep",
        parts.model.lora,
    )


def _vllm(parts: EngineParts) -> Engine:
    from manta.actors.engines.vllm_engine import start_engine

    return start_engine(
        parts.settings,
        parts.model,
        parts.vocab_size,
        parts.seed,
        parts.version,
        parts.occupancy,
        parts.direct,
    )


def _simulated(parts: EngineParts) -> Engine:
    from manta.actors.engines.simulated import SimulatedEngine

    return SimulatedEngine(
        parts.settings.simulated,
        parts.vocab_size,
        parts.model.context,
        parts.settings.max_rows,
        parts.version,
        parts.occupancy,
    )


ENGINES: dict[str, Callable[[EngineParts], Engine]] = {
    "embedded": _embedded,
    "vllm": _vllm,
    "simulated": _simulated,
}


def build_engine(
    settings: EngineSettings,
    model: ModelSpec,
    vocab_size: int,
    seed: int,
    deterministic: bool,
    version: WeightVersion,
    occupancy: Occupancy | None = None,
    direct: str | None = None,
) -> Engine:
    """The engine that `settings.engine` names, serving the model's initial weights as `version`.

    Raises ValueError for an unknown name.
    """
    builder = ENGINES.get(settings.engine)
    if builder is None:
        near = difflib.get_close_matches(settings.engine, ENGINES, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f": choose one of {sorted(ENGINES)}"
        raise ValueError(f"rollout.engine is {settings.engine!r}, which is no engine{hint}")
    occupancy = occupancy or Occupancy(settings.max_rows)
    return builder(
        EngineParts(settings, model, vocab_size, seed, deterministic, version, occupancy, direct)
    )
