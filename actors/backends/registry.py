"""The learner backends by the name that the run file uses."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.protocol import Backend
from manta.actors.backends.settings import LearnerSettings

BACKENDS = {"plain": PlainBackend}


def build_backend(settings: LearnerSettings, model: nn.Module) -> Backend:
    """The backend that `settings` names, over all ranks of the default process group if there is
    one. It takes `model` over: only the backend may change its parameters from now on."""
    if settings.backend not in BACKENDS:
        raise ValueError(
            f"learner.backend is {settings.backend!r}; known backends: {', '.join(BACKENDS)}"
        )
    group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    return BACKENDS[settings.backend](model, settings, group)
