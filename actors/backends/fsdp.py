"""The FSDP2 backend: parameters, gradients and optimizer state shared out over the ranks, by layer.

Owns how a model is cut (`torch.distributed.fsdp.fully_shard`; method: Zhao et al., 2023, arXiv
2304.11277) and one step on this rank's shards. What an update is made of, and checkpoints, are
`manta.actors.backends.sharded`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from manta.actors.backends.protocol import Want
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.shard_optimizer import ShardOptimizer
from manta.actors.backends.sharded import ShardedBackend
from manta.actors.backends.solo import group_or_solo
from manta.actors.backends.torch_optimizer import refuse_parts
from manta.actors.models.policy import evaluate
from manta.actors.models.precision import computing
from manta.actors.rows import Row

_SERVED: WeakKeyDictionary[nn.Module, dict[str, torch.dtype]] = WeakKeyDictionary()
"""The dtypes that the parameters of a model had before its masters took their place: a model goes
from one stage's backend to the next one's, and is cut once."""


class FsdpBackend(ShardedBackend):
    """`group` is None for a learner of one rank. Ranks start from rank 0's parameters."""

    def __init__(
        self, model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup | None = None
    ) -> None:
        """Raises ValueError where `fsdp.offload` has no device to offload from, the optimizer needs
        whole matrices, or the device cannot compute in `precision`."""
        whole = group_or_solo(group, next(model.parameters()).device)
        super().__init__(FsdpShards(model, settings, whole), settings, whole)


class FsdpShards:
    """See `manta.actors.backends.sharded.Shards`. The model's own parameters are the float32
    masters, in shards along their first dimension; layers compute in copies of the dtype wanted."""

    def __init__(
        self, model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup
    ) -> None:
        refuse_parts(settings)
        computing(model, settings.precision)  # raises where it cannot
        self._model = model
        self._group = group
        self._clip_norm = settings.clip_norm
        device = next(model.parameters()).device
        if settings.fsdp.offload == "cpu" and device.type == "cpu":
            raise ValueError(
                "learner.fsdp.offload: cpu keeps shards in host memory for a learner on a GPU, and "
                "this one computes on the CPU: remove it"
            )
        self.device = device
        self._mesh = DeviceMesh.from_group(group, device.type)
        if model not in _SERVED:
            _SERVED[model] = _shard(model, settings, self._mesh, group)
        self._served = _SERVED[model]
        self._parameters = {
            name: cast(DTensor, parameter) for name, parameter in model.named_parameters()
        }
        self._local = {name: _local(each) for name, each in self._parameters.items()}
        self.shapes = {name: each.shape for name, each in self._parameters.items()}
        self.trained = [name for name, each in self._parameters.items() if each.requires_grad]
        if not self.trained:
            raise ValueError("the model has no trainable parameters: nothing to learn")
        for name in self.trained:
            # Where an earlier backend left more digits than the weights it published.
            self._local[name].copy_(self._local[name].to(self._served[name]))
        matrices = [name for name in self.trained if len(self.shapes[name]) >= 2]
        vectors = [name for name in self.trained if len(self.shapes[name]) < 2]
        self._optimizer = ShardOptimizer(
            settings,
            {name: self._local[name] for name in matrices},
            {name: self._local[name] for name in vectors},
        )
        self.slots = self._optimizer.slots

    def forward(
        self, rows: Sequence[Row], wants: Sequence[Want], temperature: float
    ) -> dict[str, Tensor]:
        def question(model: nn.Module) -> dict[str, Tensor]:
            found = evaluate(model, rows, wants, temperature)
            # FSDP hangs its hooks on results, and warns of those that are views.
            return {want: values.clone() for want, values in found.items()}

        answer = cast(Callable[..., dict[str, Tensor]], self._model.answer)
        return answer(question)

    def end_evaluation(self) -> None:
        # The root keeps its whole parameters for a backward pass, over any step made meanwhile.
        cast(FSDPModule, self._model).reshard()

    def zero_gradient(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def backward(self, loss: Tensor, is_last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float, is_wanted: bool) -> tuple[float, bool]:
        gradients = {name: self._gradient(name) for name in self.trained}
        squared = torch.nn.utils.get_total_norm(list(gradients.values())) ** 2
        squared = squared.to(self.device)
        dist.all_reduce(squared, dist.ReduceOp.SUM, group=self._group)
        norm = math.sqrt(float(squared)) if float(squared) >= 0 else float(squared)
        if not is_wanted or not math.isfinite(norm):
            return norm, False
        if 0 < self._clip_norm < norm:
            for gradient in gradients.values():
                gradient.mul_(self._clip_norm / norm)
        self._optimizer.step(gradients, learning_rate)
        return norm, True

    def weight(self, name: str) -> Tensor:
        return self._whole(name, self._local[name]).to(self._served[name])

    def state(self, name: str, slot: str | None) -> Tensor:
        if slot is not None:
            return self._whole(name, self._optimizer.buffer(name, slot))
        whole = self._whole(name, self._local[name])
        return whole if name in self.trained else whole.to(self._served[name])

    def put(self, name: str, slot: str | None, whole: Tensor) -> None:
        local = self._local[name] if slot is None else self._optimizer.buffer(name, slot)
        size = -(-whole.shape[0] // self._mesh.size())
        start = min(self._mesh.get_local_rank() * size, whole.shape[0])
        local.copy_(whole[start : start + len(local)])

    def settle(self, updates: int) -> None:
        self._optimizer.set_updates(updates)

    def _gradient(self, name: str) -> Tensor:
        gradient = self._parameters[name].grad
        if gradient is None:
            return torch.zeros_like(self._local[name])
        return _local(cast(DTensor, gradient))

    def _whole(self, name: str, local: Tensor) -> Tensor:
        parameter = self._parameters[name]
        shared = DTensor.from_local(
            local.to(self.device),
            self._mesh,
            [Shard(0)],
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        return shared.full_tensor()


def _local(tensor: DTensor) -> Tensor:
    with torch.no_grad():
        return tensor.to_local()


def _shard(
    model: nn.Module, settings: LearnerSettings, mesh: DeviceMesh, group: dist.ProcessGroup
) -> dict[str, torch.dtype]:
    """Cuts `model`, layer by layer and the rest as one; the dtypes that its parameters had."""
    served = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        dist.broadcast(parameter.data, group_src=0, group=group)
    # Wide masters need no autocast: layers are gathered in what they compute in
    compute = torch.bfloat16 if settings.precision == "bf16" else next(iter(served.values()))
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    cut = partial(
        fully_shard,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(
            param_dtype=None if compute == torch.float32 else compute,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
        offload_policy=CPUOffloadPolicy() if settings.fsdp.offload == "cpu" else OffloadPolicy(),
    )
    for layer in _layers(model):
        if settings.fsdp.checkpoint_activations:
            # Inside of what FSDP does around a layer, so that it is whole when computed again.
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
            )
        cut(layer)
    cut(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses carry global denominators: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.answer = MethodType(_answer, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "answer")
    return served


def _answer(
    model: nn.Module, question: Callable[[nn.Module], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """Asks the model something in a forward pass of its root: `evaluate` reads the head's weight,
    which must be whole meanwhile."""
    return question(model)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The blocks that transformers says must not be torn apart; none: the model is one piece."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]
