"""The optimizer over a rank's shards of many parameters, each its own tensor.

The same rules as `manta.actors.backends.optimizer`, which works on one flat buffer. Knows nothing
of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.torch_optimizer import (
    fresh_state,
    groups_of,
    make_optimizer,
    slots_of,
)


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
        groups = groups_of(
            settings,
            [tensor for tensor in matrices.values() if tensor.numel()],
            [tensor for tensor in vectors.values() if tensor.numel()],
        )
        # A tiny model may leave a rank without any number of its own
        self._optimizer = make_optimizer(settings, groups) if groups else None
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
