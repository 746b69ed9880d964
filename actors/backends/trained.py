"""One module that a backend trains: its master weights, its gradient, and its optimizer.

The policy is one, and so is each resident beside it. When they are stepped, and over which loss, is
the backend's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn

from manta.actors.backends.flat import FlatParameters
from manta.actors.backends.optimizer import FlatOptimizer
from manta.actors.backends.parked import Parked
from manta.actors.backends.settings import LearnerSettings
from manta.actors.models.adapter import adapter_name
from manta.actors.models.causal import model_state


class TrainedModule:
    """Every rank holds all of it; ranks start from rank 0's and stay equal to the bit."""

    def __init__(
        self, module: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup | None
    ) -> None:
        self._module = module
        self._settings = settings
        self._group = group
        self._flat = FlatParameters(module)
        self._optimizer = FlatOptimizer(settings, self._flat)
        if group is not None:
            dist.broadcast(self._flat.master, group_src=0, group=group)
            self._flat.publish()

    def parkable(self) -> list[Parked]:
        """The buffers that an engine may have the memory of between two steps."""
        parkable = [Parked(self._flat.gradient, keeps_content=False)]
        if self._flat.gradient.device.type != "cpu":
            parkable += self._optimizer.slots()
        return parkable

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While it lasts nothing is computed for the module's gradient."""
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def zero_gradient(self) -> None:
        self._flat.zero_gradient()

    def finish_gradient(self) -> float:
        """Sums the gradient over the ranks and clips it; its norm before that."""
        if self._group is not None:
            self._flat.sum_gradient(self._group)
        return self._flat.clip(self._settings.clip_norm)

    def step(self, learning_rate: float) -> None:
        self._optimizer.step(learning_rate)
        self._flat.publish()

    @property
    def updates(self) -> int:
        """How many steps were taken so far."""
        return self._optimizer.updates

    def parameters(self) -> dict[str, Tensor]:
        """What a checkpoint holds: masters of the trained parameters, frozen ones as they are; of
        weights under an adapter nothing."""
        masters = {
            adapter_name(name) or name: self._flat.view(self._flat.master, name)
            for name in self._flat.names
        }
        return {name: masters.get(name, p) for name, p in model_state(self._module).items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        return self._optimizer.state()

    def load(
        self, parameters: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], updates: int
    ) -> None:
        """Takes what `parameters` and `optimizer_state` gave after `updates` steps.

        Raises ValueError naming the first tensor of the optimizer that does not belong.
        """
        self._optimizer.load(optimizer, updates)
        self.take(parameters)

    def take(self, parameters: Mapping[str, Tensor]) -> None:
        """Takes what `parameters` gave, and leaves the optimizer as it is."""
        for name, tensor in self.parameters().items():
            tensor.copy_(parameters[name])
        self._flat.publish()
