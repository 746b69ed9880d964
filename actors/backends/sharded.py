"""A backend over parameters and optimizer state that no rank needs to hold as a whole.

Owns one optimizer update, publishing, and saving and loading in the files of the plain backend. How
tensors are shared out, and how a pass and a step are made over them, is the `Shards`'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from manta.actors.backends.agreed import agreed, evaluate_together, filler_loss
from manta.actors.backends.protocol import Loss, Want
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.state_files import (
    Scalars,
    host_copy,
    read_state,
    refuse_other_optimizer,
    write_state,
)
from manta.actors.backends.totals import Totals
from manta.actors.rows import Row
from manta.actors.weight_tensors import pack, refuse_mismatch
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion


class Shards(Protocol):
    """A model's parameters and optimizer state on the ranks of a group. Every method that touches
    tensors is one that all ranks call in the same order."""

    @property
    def device(self) -> torch.device: ...

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of all parameters, by name, in the model's order; tied ones once."""
        ...

    @property
    def trained(self) -> Sequence[str]:
        """The names of those that the optimizer steps."""
        ...

    @property
    def slots(self) -> Sequence[str]:
        """What the optimizer keeps of each, such as `exp_avg`."""
        ...

    def forward(
        self, rows: Sequence[Row], wants: Sequence[Want], temperature: float
    ) -> dict[str, Tensor]:
        """See `manta.actors.models.policy.evaluate`."""
        ...

    def end_evaluation(self) -> None:
        """Called after the last of some forward passes that no backward pass follows."""
        ...

    def zero_gradient(self) -> None: ...

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Adds the gradient of `loss`, summed over the ranks; `is_last` of an update."""
        ...

    def step(self, learning_rate: float, is_wanted: bool) -> tuple[float, bool]:
        """Clips and applies the gradient, unless it is not finite or the step not wanted. Returns
        the gradient's norm before clipping, and whether the step was made: equal on all ranks."""
        ...

    def weight(self, name: str) -> Tensor:
        """A whole parameter in the dtype that it is published in, on every rank."""
        ...

    def state(self, name: str, slot: str | None) -> Tensor:
        """A whole slot of a trained parameter, float32, on every rank; None is the master weight,
        or a frozen parameter as it is."""
        ...

    def put(self, name: str, slot: str | None, whole: Tensor) -> None:
        """Takes what `state` gave."""
        ...

    def settle(self, updates: int) -> None:
        """Called after the last `put`: the optimizer has made `updates` steps so far."""
        ...


class ShardedBackend:
    """See `manta.actors.backends.protocol.Backend` and `Sharded`."""

    def __init__(self, shards: Shards, settings: LearnerSettings, group: dist.ProcessGroup) -> None:
        self._shards = shards
        self._settings = settings
        self._group = group
        self._updates = 0

    def evaluate(
        self, rows: Sequence[Row], wants: Sequence[Want], temperature: float
    ) -> dict[str, Tensor]:
        """Every rank must call it, also one without rows."""
        found = evaluate_together(
            self._shards.forward,
            rows,
            wants,
            temperature,
            self._settings.tokens_per_micro_batch,
            self._group,
            self._shards.device,
        )
        self._shards.end_evaluation()
        return found

    def update(
        self,
        micro_batches: Iterable[Sequence[Row]],
        wants: Sequence[Want],
        temperature: float,
        loss: Loss,
        learning_rate: float,
    ) -> dict[str, float]:
        """One update; every rank must call it, also one without micro-batches.

        `clip_norm` 0 turns clipping off. A non-finite loss or gradient norm skips the update.
        """
        self._shards.zero_gradient()
        totals = Totals()
        # One in which nothing trains makes no pass, and would be missed by the other ranks.
        own = [rows for rows in micro_batches if any(row.num_tokens for row in rows)]
        batches = agreed(own, self._group, self._shards.device)
        for i, rows in enumerate(batches):
            is_last = i == len(batches) - 1
            if rows is None:
                nothing = filler_loss(self._shards.forward, wants, temperature)
                self._shards.backward(nothing, is_last)
                continue
            terms = loss(rows, self._shards.forward(rows, wants, temperature))
            self._shards.backward(terms.loss, is_last)
            totals.add(terms)
        totals.combine(self._group)
        metrics = totals.values()
        norm, is_made = self._shards.step(learning_rate, math.isfinite(metrics["loss"]))
        self._updates += is_made
        return {**metrics, "grad_norm": norm, "skipped_updates": float(not is_made)}

    def weights(self, version: WeightVersion) -> Weights:
        """On every rank that calls it; the others must `lend_shards` meanwhile."""
        names = self._shards.shapes
        # What is whole on a rank may be gone after the next call
        return pack({name: host_copy(self._shards.weight(name)) for name in names}, version)

    def lend_shards(self) -> None:
        """See `manta.actors.backends.protocol.Sharded`."""
        for name in self._shards.shapes:
            self._shards.weight(name)

    def save(self, folder: Path) -> None:
        """Every rank must call it; rank 0 writes. Master weights in float32, whatever dtype the
        model computes in."""
        self.snapshot()(folder)

    def snapshot(self) -> Callable[[Path], None]:
        """What `save` will write, whatever is learnt meanwhile. Every rank must call it."""
        is_writer = dist.get_rank(self._group) == 0
        parameters: dict[str, Tensor] = {}
        optimizer: dict[str, Tensor] = {}
        for name, slot, tensor in self._states():
            if is_writer and slot is None:
                parameters[name] = host_copy(tensor)
            elif is_writer:
                optimizer[f"optimizer.{name}.{slot}"] = host_copy(tensor)
        scalars = Scalars(self._settings.optimizer, self._updates)

        def write(folder: Path) -> None:
            if is_writer:
                write_state(folder, parameters, optimizer, scalars)

        return write

    def load(self, folder: Path) -> None:
        """Raises ValueError where a file is unreadable, or naming the first tensor of another
        model; nothing is changed by weights that do not belong."""
        parameters, optimizer, scalars = read_state(folder)
        refuse_other_optimizer(folder, scalars, self._settings.optimizer)
        shards = self._shards
        refuse_mismatch(
            _shaped(shards.shapes), parameters, f"{folder} is a checkpoint of another model"
        )
        own = {f"optimizer.{name}.{slot}": (name, slot) for name, slot in self._optimizer_places()}
        refuse_mismatch(
            _shaped({key: shards.shapes[name] for key, (name, _) in own.items()}),
            optimizer,
            "optimizer state of another model or optimizer",
        )
        for name, tensor in parameters.items():
            shards.put(name, None, tensor)
        for key, (name, slot) in own.items():
            shards.put(name, slot, optimizer[key])
        shards.settle(scalars.updates)
        self._updates = scalars.updates

    def take(self, parameters: Mapping[str, Tensor]) -> None:
        """See `manta.actors.backends.protocol.TakesParameters`."""
        refuse_mismatch(_shaped(self._shards.shapes), parameters)
        for name in self._shards.shapes:
            self._shards.put(name, None, parameters[name])
        self._shards.settle(self._updates)

    def _states(self) -> Iterator[tuple[str, str | None, Tensor]]:
        """Everything that a checkpoint holds, whole, one tensor after the other."""
        for name in self._shards.shapes:
            yield name, None, self._shards.state(name, None)
        for name, slot in self._optimizer_places():
            yield name, slot, self._shards.state(name, slot)

    def _optimizer_places(self) -> list[tuple[str, str]]:
        shards = self._shards
        return [(name, slot) for name in shards.trained for slot in shards.slots]


def _shaped(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
