"""The learner backends by the name that the run file uses, and plug-ins (`module:attribute`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import torch.distributed as dist
from torch import nn

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.protocol import Backend, HoldsResidents
from manta.actors.backends.residents import Resident
from manta.actors.backends.settings import HOLDING_RESIDENTS, LearnerSettings

BackendBuilder: TypeAlias = Callable[..., Backend]
"""Called with the model, the settings and the process group or None; one that holds residents also
with those of the stage, by name, where there are any."""


def _fsdp(model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup | None) -> Backend:
    # FSDP2 takes a while to load
    from manta.actors.backends.fsdp import FsdpBackend

    return FsdpBackend(model, settings, group)


def _deepspeed(
    model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup | None
) -> Backend:
    from manta.actors.backends.deepspeed import DeepSpeedBackend

    return DeepSpeedBackend(model, settings, group)


BACKENDS: Mapping[str, BackendBuilder] = {
    "plain": PlainBackend,
    "fsdp": _fsdp,
    "deepspeed": _deepspeed,
}


def build_backend(
    settings: LearnerSettings, model: nn.Module, residents: Mapping[str, Resident] | None = None
) -> Backend:
    """The backend that `settings` names, over all ranks of the default process group if there is
    one. It takes `model` and `residents` over: only the backend may change their parameters from
    now on.

    Raises ValueError for a name that is not found, or of one that cannot hold residents.
    """
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    builder = _builder(settings.backend)
    if not residents:
        return builder(model, settings, group)
    if not hasattr(builder, HoldsResidents.update_each.__name__):
        raise ValueError(
            f"learner.backend {settings.backend!r} has no {HoldsResidents.update_each.__name__}(), "
            f"so it cannot train {', '.join(residents)} beside the policy: choose "
            f"{' or '.join(HOLDING_RESIDENTS)}, or an algorithm that trains the policy alone"
        )
    return builder(model, settings, group, residents)


def _builder(name: str) -> BackendBuilder:
    if name in BACKENDS:
        return BACKENDS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"learner.backend is {name!r}; known backends: {', '.join(BACKENDS)} (or name one "
            "module:attribute)"
        )
    found = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(found):
        raise ValueError(f"learner.backend: module {module_name} has no class {attribute!r}")
    return cast(BackendBuilder, found)
