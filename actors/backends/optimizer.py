"""The optimizer over flat parameters, with its state by parameter name.

Which of torch's it is, and what that keeps, is `manta.actors.backends.torch_optimizer`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manta.actors.backends.flat import FlatParameters
from manta.actors.backends.parked import Parked
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.torch_optimizer import (
    counter_of,
    for_the_rest,
    groups_of,
    make_optimizer,
    slots_of,
)
from manta.actors.weight_tensors import refuse_mismatch


class FlatOptimizer:
    """Steps `flat.master` by `flat.gradient`. `updates` counts the steps taken."""

    def __init__(self, settings: LearnerSettings, flat: FlatParameters) -> None:
        self._flat = flat
        self._stretches = _stretches(settings, flat)
        self._of = {name: stretch for stretch in self._stretches for name in stretch.names}
        self.updates = 0

    def step(self, learning_rate: float) -> None:
        for stretch in self._stretches:
            stretch.step(learning_rate)
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """Views by `optimizer.<parameter>.<slot>`, as in `optimizer.model.norm.weight.exp_avg`."""
        return {
            f"optimizer.{name}.{slot}": self._flat.view(parked.content, name, self._of[name].start)
            for name in self._flat.names
            for slot, parked in self._of[name].slots.items()
        }

    def slots(self) -> list[Parked]:
        """The buffers of the state, which may be parked between two steps."""
        return [parked for stretch in self._stretches for parked in stretch.slots.values()]

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Takes the state that `state` gave after `updates` steps.

        Raises ValueError naming the first tensor that does not belong.
        """
        own = self.state()
        refuse_mismatch(own, state, "optimizer state of another model or optimizer")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.updates = updates
        for stretch in self._stretches:
            stretch.set_updates(updates)


class _Stretch:
    """One of torch's optimizers over the elements `start:end` of the flat master, in which the
    parameters `names` lie; `matrices` and `vectors` are views of it that together cover them.

    `slots` are flat buffers over the stretch. Torch's optimizer works on views of them, so that
    its state exists from the start.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        names: Sequence[str],
        start: int,
        end: int,
        matrices: Sequence[Tensor],
        vectors: Sequence[Tensor],
    ) -> None:
        self.names, self.start = names, start
        self._optimizer = make_optimizer(settings, groups_of(settings, matrices, vectors))
        parts = [*matrices, *vectors]
        device = parts[0].device
        buffers = {slot: torch.zeros(end - start, device=device) for slot in slots_of(settings)}
        self.slots = {slot: Parked(each, keeps_content=True) for slot, each in buffers.items()}
        self._counters: list[Tensor] = []
        for part in parts:
            first = part.storage_offset() - start
            place = slice(first, first + part.numel())
            counter = counter_of(settings, part)
            slots = {slot: buffer[place].view(part.shape) for slot, buffer in buffers.items()}
            if slots:
                self._optimizer.state[part].update(slots | counter)
            self._counters += counter.values()

    def step(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    def set_updates(self, updates: int) -> None:
        for counter in self._counters:
            counter.fill_(updates)


def _stretches(settings: LearnerSettings, flat: FlatParameters) -> list[_Stretch]:
    """Those that lead in `flat` each for themselves, under what `settings` asks for, and all others
    as two, matrices and vectors."""
    found = []
    led, end = flat.border, len(flat.master)
    if flat.leading:
        leading = list(flat.leading.values())
        found.append(_Stretch(settings, list(flat.leading), 0, led, leading, []))
    names = [name for name in flat.names if name not in flat.leading]
    if names:
        matrices, vectors = ([p] if len(p) else [] for p in (flat.decayed, flat.undecayed))
        rest = for_the_rest(settings)
        found.append(_Stretch(rest, names, led, end, matrices, vectors))
    return found
