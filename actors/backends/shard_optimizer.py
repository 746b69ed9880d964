"""The optimizer over a rank's shards of many parameters, each its own tensor.

The same rules as `manta.actors.backends.optimizer`, which works on one flat buffer: AdamW
(Loshchilov and Hutter, 2019, arXiv 1711.05101) or SGD with heavy-ball momentum, weight decay for
matrices only. Knows nothing of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from manta.actors.backends.settings import LearnerSettings

Groups = list[dict[str, Any]]
"""What torch's optimizers take."""


def slots_of(settings: LearnerSettings) -> tuple[str, ...]:
    """What the optimizer of `settings` keeps of each parameter, in its shape."""
    if settings.optimizer == "adamw":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if settings.momentum else ()


def groups_of(
    settings: LearnerSettings, matrices: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Groups:
    """Parameter groups with their weight decay; those without a parameter are left out."""
    parts = ((matrices, settings.weight_decay), (vectors, 0.0))
    return [{"params": list(part), "weight_decay": decay} for part, decay in parts if len(part)]


def fresh_state(settings: LearnerSettings, parameter: Tensor) -> dict[str, Tensor]:
    """The state before the first step: torch would make it in that step, too late to be loaded."""
    state = {slot: torch.zeros_like(parameter) for slot in slots_of(settings)}
    if settings.optimizer == "adamw":
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return state


class ShardOptimizer:
    """Steps the tensors of `matrices` and `vectors` (by name, float32, any may be empty)."""

    def __init__(
        self,
        settings: LearnerSettings,
        matrices: Mapping[str, Tensor],
        vectors: Mapping[str, Tensor],
    ) -> None:
        self.slots = slots_of(settings)
        self._parameters = {**matrices, **vectors}
        self._states = {name: fresh_state(settings, t) for name, t in self._parameters.items()}
        self._optimizer = _optimizer(
            settings,
            groups_of(
                settings,
                [tensor for tensor in matrices.values() if tensor.numel()],
                [tensor for tensor in vectors.values() if tensor.numel()],
            ),
        )
        for name, tensor in self._parameters.items():
            if self._optimizer is not None and tensor.numel():
                self._optimizer.state[tensor] = self._states[name]

    def buffer(self, name: str, slot: str) -> Tensor:
        return self._states[name][slot]

    def step(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        if self._optimizer is None:
            return
        for name, tensor in self._parameters.items():
            tensor.grad = gradients[name]
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        for tensor in self._parameters.values():
            tensor.grad = None

    def set_updates(self, updates: int) -> None:
        for state in self._states.values():
            if "step" in state:
                state["step"].fill_(updates)


def _optimizer(settings: LearnerSettings, groups: Groups) -> torch.optim.Optimizer | None:
    """None for a rank without any number of its own, as a tiny model may leave one."""
    if not groups:
        return None
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, betas=settings.betas, eps=settings.adam_epsilon, fused=True
        )
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
