"""The plain backend: torch only, every rank holds the whole model and the whole optimizer state.

Owns one optimizer update. Which rows make a micro-batch and what the loss is come from outside;
what an update does to one module is `manta.actors.backends.trained`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from manta.actors.backends.protocol import POLICY, Loss, Want
from manta.actors.backends.residents import Resident
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.state_files import (
    UPDATES,
    Scalars,
    Shard,
    host_copy,
    read_state,
    refuse_other_optimizer,
    write_state,
)
from manta.actors.backends.totals import Totals
from manta.actors.backends.trained import TrainedModule
from manta.actors.models.causal import model_state
from manta.actors.models.lora import base_hash
from manta.actors.models.policy import evaluate, evaluate_in_batches
from manta.actors.models.precision import computing
from manta.actors.rows import Row
from manta.actors.weight_tensors import pack, refuse_mismatch
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion

_ALONE: Mapping[str, Resident] = MappingProxyType({})


class PlainBackend:
    """See `manta.actors.backends.protocol`: a `Backend` that `HoldsResidents`, `Snapshots` and
    `Offloads`. `group` is
    None for a learner of one rank.

    Ranks start from rank 0's parameters and stay equal to the bit, since all apply the same summed
    gradient; so `save` needs to be called on one rank only, `snapshot` and `load` on all.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: LearnerSettings,
        group: dist.ProcessGroup | None = None,
        residents: Mapping[str, Resident] = _ALONE,
    ) -> None:
        computing(model, settings.precision)  # raises where it cannot
        self._model = model
        self._settings = settings
        self._group = group
        self._base = base_hash(model)
        self._residents = {name: resident.module for name, resident in residents.items()}
        self._modules = {POLICY: TrainedModule(model, settings, group)}
        for name, resident in residents.items():
            tree = nn.ModuleDict({name: resident.module})
            self._modules[name] = TrainedModule(tree, resident.settings, group)
        self._parkable = [each for module in self._modules.values() for each in module.parkable()]
        self._is_offloaded = False

    def evaluate(
        self, rows: Sequence[Row], wants: Sequence[Want], temperature: float
    ) -> dict[str, Tensor]:
        with computing(self._model, self._settings.precision):
            return evaluate_in_batches(
                self._model,
                rows,
                wants,
                temperature,
                self._settings.tokens_per_micro_batch,
                tuple(self._residents.values()),
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
        return self.update_each(micro_batches, wants, temperature, loss, {POLICY: learning_rate})

    def update_each(
        self,
        micro_batches: Iterable[Sequence[Row]],
        wants: Sequence[Want],
        temperature: float,
        loss: Loss,
        learning_rates: Mapping[str, float],
    ) -> dict[str, float]:
        """As `update`, see `manta.actors.backends.protocol.HoldsResidents`."""
        if self._is_offloaded:
            raise RuntimeError("update() while gradients are offloaded: call restore() first")
        trained = {name: self._modules[name] for name in learning_rates}
        residents, totals = tuple(self._residents.values()), Totals()
        with ExitStack() as frozen:
            for name, module in self._modules.items():
                if name in trained:
                    module.zero_gradient()
                else:
                    frozen.enter_context(module.frozen())
            for rows in micro_batches:
                with computing(self._model, self._settings.precision):
                    found = evaluate(self._model, rows, wants, temperature, residents)
                terms = loss(rows, found)
                terms.loss.backward()  # type: ignore[no-untyped-call]
                totals.add(terms)
        norms = {name: module.finish_gradient() for name, module in trained.items()}
        if self._group is not None:
            totals.combine(self._group)
        metrics = totals.values()
        is_finite = all(math.isfinite(each) for each in (*norms.values(), metrics["loss"]))
        if is_finite:
            for name, module in trained.items():
                module.step(learning_rates[name])
        told = {
            "grad_norm" if name == POLICY else f"{name}/grad_norm": norm
            for name, norm in norms.items()
        }
        return {**metrics, **told, "skipped_updates": float(not is_finite)}

    def weights(self, version: WeightVersion) -> Weights:
        return pack(model_state(self._model), version)

    def save(self, folder: Path) -> None:
        """Master weights in float32, whatever dtype the model computes in. Residents' are beside
        the optimizer's state: only who trains reads them."""
        parameters = self._modules[POLICY].parameters()
        write_state(folder, parameters, self._private_state(), self._scalars())

    def snapshot(self) -> Callable[[Path], None]:
        """See `manta.actors.backends.protocol.Snapshots`: each rank has about as many bytes."""
        group = self._group
        shard = (
            Shard() if group is None else Shard(dist.get_rank(group), dist.get_world_size(group))
        )
        parameters, private = (
            {name: host_copy(tensors[name]) for name in _share(tensors, shard)}
            for tensors in (self._modules[POLICY].parameters(), self._private_state())
        )
        return partial(
            write_state,
            parameters=parameters,
            optimizer=private,
            scalars=self._scalars(),
            shard=shard,
        )

    def load(self, folder: Path) -> None:
        """Raises ValueError where a file is unreadable, or naming the first tensor of another
        model; nothing is changed by weights that do not belong."""
        parameters, private, scalars = read_state(folder)
        refuse_other_optimizer(folder, scalars, self._settings.optimizer)
        if scalars.base != self._base:
            raise ValueError(
                f"{folder} is a checkpoint of another model: the weights that its adapter is over "
                f"have hash {scalars.base}, this learner's {self._base} (None: no adapter)"
            )
        states = {POLICY: (parameters, private, scalars.updates)}
        for name in self._residents:
            optimizer = _taken(private, f"optimizer.{name}.")
            updates = _taken(private, f"{name}.{UPDATES}").values()
            states[name] = (_taken(private, f"{name}."), optimizer, sum(map(int, updates)))
        for name, state in states.items():
            refuse_mismatch(
                self._modules[name].parameters(),
                state[0],
                f"{folder} is a checkpoint of another model",
            )
        for name, state in states.items():
            self._modules[name].load(*state)

    def take(self, parameters: Mapping[str, Tensor]) -> None:
        """See `manta.actors.backends.protocol.TakesParameters`."""
        refuse_mismatch(self._modules[POLICY].parameters(), parameters)
        self._modules[POLICY].take(parameters)

    def _scalars(self) -> Scalars:
        return Scalars(self._settings.optimizer, self._modules[POLICY].updates, self._base)

    def _private_state(self) -> dict[str, Tensor]:
        """What nobody but a learner reads: optimizers' states, and all of the residents'."""
        state: dict[str, Tensor] = {}
        for name, module in self._modules.items():
            state |= module.optimizer_state()
            if name != POLICY:
                state |= module.parameters()
                state[f"{name}.{UPDATES}"] = torch.tensor(module.updates)
        return state

    def offload(self) -> None:
        """See `manta.actors.backends.protocol.Offloads`."""
        self._is_offloaded = True
        for parked in self._parkable:
            parked.give_back()
        if any(p.device.type == "cuda" for p in self._model.parameters()):
            # Freed is not enough: other processes get what torch keeps for itself only now.
            torch.cuda.empty_cache()

    def restore(self) -> None:
        for parked in self._parkable:
            parked.take_back()
        self._is_offloaded = False

    def held_bytes(self) -> int:
        return sum(parked.held_bytes for parked in self._parkable)


def _taken(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of `state` whose names begin so, which leave it."""
    return {name: state.pop(name) for name in list(state) if name.startswith(prefix)}


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
