"""The optimizer over flat parameters, with its state by parameter name.

Weight decay applies to matrices (embeddings included), never to norms and biases, as is usual for
transformers. AdamW: Loshchilov and Hutter (2019, arXiv:1711.05101); SGD: with heavy-ball momentum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from manta.actors.backends.flat import FlatParameters
from manta.actors.backends.parked import Parked
from manta.actors.backends.settings import LearnerSettings
from manta.actors.weight_tensors import first_mismatch


class FlatOptimizer:
    """Steps `flat.master` by `flat.gradient`. `updates` counts the steps taken."""

    def __init__(self, settings: LearnerSettings, flat: FlatParameters) -> None:
        parts = [(flat.decayed, settings.weight_decay), (flat.undecayed, 0.0)]
        groups = [{"params": [part], "weight_decay": decay} for part, decay in parts if len(part)]
        self._flat = flat
        self._optimizer: torch.optim.Optimizer
        slots: tuple[str, ...]
        if settings.optimizer == "adamw":
            self._optimizer = torch.optim.AdamW(
                groups, betas=settings.betas, eps=settings.adam_epsilon, fused=True
            )
            slots = ("exp_avg", "exp_avg_sq")
        else:
            self._optimizer = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
            slots = ("momentum_buffer",) if settings.momentum else ()
        buffers = {slot: torch.zeros_like(flat.master) for slot in slots}
        self._slots = {slot: Parked(each, keeps_content=True) for slot, each in buffers.items()}
        self._counters: list[Tensor] = []
        self.updates = 0
        self._adopt_slots(buffers)

    def step(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """Views by `optimizer.<parameter>.<slot>`, as in `optimizer.model.norm.weight.exp_avg`."""
        return {
            f"optimizer.{name}.{slot}": self._flat.view(parked.content, name)
            for name in self._flat.names
            for slot, parked in self._slots.items()
        }

    def slots(self) -> list[Parked]:
        """The buffers of the state, which may be parked between two steps."""
        return list(self._slots.values())

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Takes the state that `state` gave after `updates` steps.

        Raises ValueError naming the first tensor that does not belong.
        """
        own = self.state()
        problem = first_mismatch(own, state)
        if problem is not None:
            raise ValueError(f"optimizer state of another model or optimizer: {problem}")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.updates = updates
        for counter in self._counters:
            counter.fill_(updates)

    def _adopt_slots(self, buffers: Mapping[str, Tensor]) -> None:
        """Makes torch's optimizer work on our flat `buffers`, so that state exists from the
        start."""
        border = len(self._flat.decayed)
        parts = (
            (self._flat.decayed, slice(0, border)),
            (self._flat.undecayed, slice(border, None)),
        )
        for part, place in parts:
            if not len(part) or not buffers:
                continue
            state = self._optimizer.state[part]
            state.update({slot: buffer[place] for slot, buffer in buffers.items()})
            if "exp_avg" in buffers:
                state["step"] = torch.zeros((), dtype=torch.float32, device=part.device)
                self._counters.append(state["step"])
