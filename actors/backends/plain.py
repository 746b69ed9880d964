"""The plain backend: torch only, every rank holds the whole model and the whole optimizer state.

Owns one optimizer update. Which rows make a micro-batch and what the loss is come from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from manta.actors.backends.flat import FlatParameters
from manta.actors.backends.optimizer import FlatOptimizer
from manta.actors.backends.parked import Parked
from manta.actors.backends.protocol import Loss, Want
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.state_files import (
    Scalars,
    Shard,
    host_copy,
    read_state,
    write_state,
)
from manta.actors.backends.totals import Totals
from manta.actors.models.adapter import adapter_name
from manta.actors.models.causal import model_state
from manta.actors.models.lora import base_hash
from manta.actors.models.policy import evaluate, evaluate_in_batches
from manta.actors.models.precision import computing
from manta.actors.rows import Row
from manta.actors.weight_tensors import first_mismatch, pack
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion


class PlainBackend:
    """See `manta.actors.backends.protocol`: a `Backend` that `Snapshots` and `Offloads`. `group` is
    None for a learner of one rank.

    Ranks start from rank 0's parameters and stay equal to the bit, since all apply the same summed
    gradient; so `save` needs to be called on one rank only, `snapshot` and `load` on all.
    """

    def __init__(
        self, model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup | None = None
    ) -> None:
        computing(model, settings.precision)  # raises where it cannot
        self._model = model
        self._settings = settings
        self._group = group
        self._flat = FlatParameters(model)
        self._optimizer = FlatOptimizer(settings, self._flat)
        self._base = base_hash(model)
        self._parkable = [Parked(self._flat.gradient, keeps_content=False)]
        if self._flat.gradient.device.type != "cpu":
            self._parkable += self._optimizer.slots()
        self._is_offloaded = False
        if group is not None:
            dist.broadcast(self._flat.master, group_src=0, group=group)
            self._flat.publish()

    def evaluate(
        self, rows: Sequence[Row], wants: Sequence[Want], temperature: float
    ) -> dict[str, Tensor]:
        with computing(self._model, self._settings.precision):
            return evaluate_in_batches(
                self._model, rows, wants, temperature, self._settings.tokens_per_micro_batch
            )

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
        Raises RuntimeError while offloaded.
        """
        if self._is_offloaded:
            raise RuntimeError("update() while gradients are offloaded: call restore() first")
        self._flat.zero_gradient()
        totals = Totals()
        for rows in micro_batches:
            with computing(self._model, self._settings.precision):
                statistics = evaluate(self._model, rows, wants, temperature)
            terms = loss(rows, statistics)
            terms.loss.backward()  # type: ignore[no-untyped-call]
            totals.add(terms)
        if self._group is not None:
            self._flat.sum_gradient(self._group)
            totals.combine(self._group)
        metrics = totals.values()
        norm = self._flat.clip(self._settings.clip_norm)
        is_finite = math.isfinite(norm) and math.isfinite(metrics["loss"])
        if is_finite:
            self._optimizer.step(learning_rate)
            self._flat.publish()
        return {**metrics, "grad_norm": norm, "skipped_updates": float(not is_finite)}

    def weights(self, version: WeightVersion) -> Weights:
        return pack(model_state(self._model), version)

    def save(self, folder: Path) -> None:
        """Master weights in float32, whatever dtype the model computes in."""
        write_state(folder, self._parameters(), self._optimizer.state(), self._scalars())

    def snapshot(self) -> Callable[[Path], None]:
        """See `manta.actors.backends.protocol.Snapshots`: each rank has about as many bytes."""
        group = self._group
        shard = (
            Shard() if group is None else Shard(dist.get_rank(group), dist.get_world_size(group))
        )
        parameters, optimizer = (
            {name: host_copy(tensors[name]) for name in _share(tensors, shard)}
            for tensors in (self._parameters(), self._optimizer.state())
        )
        return partial(
            write_state,
            parameters=parameters,
            optimizer=optimizer,
            scalars=self._scalars(),
            shard=shard,
        )

    def load(self, folder: Path) -> None:
        """Raises ValueError where a file is unreadable, or naming the first tensor of another
        model; nothing is changed by weights that do not belong."""
        parameters, optimizer, scalars = read_state(folder)
        if scalars.optimizer != self._settings.optimizer:
            raise ValueError(
                f"{folder} was written with optimizer {scalars.optimizer!r}, this learner uses "
                f"{self._settings.optimizer!r}: set learner.optimizer to continue it"
            )
        if scalars.base != self._base:
            raise ValueError(
                f"{folder} is a checkpoint of another model: the weights that its adapter is over "
                f"have hash {scalars.base}, this learner's {self._base} (None: no adapter)"
            )
        own = self._parameters()
        problem = first_mismatch(own, parameters)
        if problem is not None:
            raise ValueError(f"{folder} is a checkpoint of another model: {problem}")
        self._optimizer.load(optimizer, scalars.updates)
        for name, tensor in own.items():
            tensor.copy_(parameters[name])
        self._flat.publish()

    def offload(self) -> None:
        """See `manta.actors.backends.protocol.Offloads`."""
        self._is_offloaded = True
        for parked in self._parkable:
            parked.give_back()
        if self._flat.gradient.device.type == "cuda":
            # Freed is not enough: other processes get what torch keeps for itself only now.
            torch.cuda.empty_cache()

    def restore(self) -> None:
        for parked in self._parkable:
            parked.take_back()
        self._is_offloaded = False

    def held_bytes(self) -> int:
        return sum(parked.held_bytes for parked in self._parkable)

    def _scalars(self) -> Scalars:
        return Scalars(self._settings.optimizer, self._optimizer.updates, self._base)

    def _parameters(self) -> dict[str, Tensor]:
        """What a checkpoint holds: masters of the trained parameters, frozen ones as they are; of
        weights under an adapter the hash alone."""
        masters = {
            adapter_name(name) or name: self._flat.view(self._flat.master, name)
            for name in self._flat.names
        }
        return {name: masters.get(name, p) for name, p in model_state(self._model).items()}


def _share(tensors: Mapping[str, Tensor], shard: Shard) -> list[str]:
    """The names of `shard`'s tensors: the largest ones first, each to whom has least so far."""
    held = [0] * shard.count
    names: list[str] = []
    for name in sorted(tensors, key=lambda name: tensors[name].numel(), reverse=True):
        least = held.index(min(held))
        held[least] += tensors[name].numel()
        if least == shard.index:
            names.append(name)
    return names
