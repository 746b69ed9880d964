"""The DeepSpeed backend: ZeRO 0 to 3 (Rajbhandari et al., 2019, arXiv 1910.02054).

Owns the engine over a model and what is asked of it. What an update is made of, and checkpoints,
are `manta.actors.backends.sharded`'s; DeepSpeed's configuration is `deepspeed_config`'s. DeepSpeed
is loaded when a backend is made, not with this module.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from manta.actors.backends.deepspeed_config import whole_config
from manta.actors.backends.protocol import Want
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.sharded import ShardedBackend
from manta.actors.backends.solo import group_or_solo
from manta.actors.backends.torch_optimizer import (
    fresh_state,
    groups_of,
    make_optimizer,
    refuse_parts,
    slots_of,
)
from manta.actors.models.policy import evaluate
from manta.actors.rows import Row

_ENGINE = "_deepspeed_of_manta"
"""The attribute of a model that has its engine: a model goes from one stage's backend to the next
one's, and DeepSpeed takes it over once."""


class DeepSpeedBackend(ShardedBackend):
    """`group` is None for a learner of one rank. Ranks start from rank 0's parameters."""

    def __init__(
        self, model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup | None = None
    ) -> None:
        """Raises ValueError where the model is not float32, state is to be offloaded from a CPU, or
        the optimizer needs whole matrices."""
        whole = group_or_solo(group, next(model.parameters()).device)
        super().__init__(DeepSpeedShards(model, settings, whole), settings, whole)


class _Gated:
    """An optimizer's step that DeepSpeed may call to no effect."""

    is_open = True

    def step(self, closure: None = None) -> None:
        if self.is_open:
            super().step(closure)  # type: ignore[misc]


class _AdamW(_Gated, torch.optim.AdamW):  # type: ignore[misc]
    """AdamW behind the gate."""


class _Sgd(_Gated, torch.optim.SGD):  # type: ignore[misc]
    """SGD behind the gate."""


class _Asked(nn.Module):
    """The module that DeepSpeed wraps: a forward pass answers a question about the model.

    The question is a function, so that DeepSpeed finds no tensors, and nothing to warn of, in it.
    The answer is one tensor, [T, C]: stage 3 notes which results a backward pass comes from and
    waits for ever where ranks note different things, as with a loss of one and a filler of all.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, question: Callable[[nn.Module], Tensor]) -> Tensor:
        return question(self.model)


@dataclass(frozen=True)
class _Engine:
    """DeepSpeed over one model. `shapes` are those before any parameter was shared out."""

    engine: Any
    optimizer: _AdamW | _Sgd
    shapes: dict[str, torch.Size]
    settings: LearnerSettings

    def partitions(self) -> list[Tensor]:
        """What the optimizer steps on this rank."""
        if self.settings.deepspeed.stage == 3:
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return [each for group in self.optimizer.param_groups for each in group["params"]]

    def begin(self) -> None:
        """A fresh optimizer over the weights as they are published."""
        stage = self.settings.deepspeed.stage
        if stage:
            self.engine.optimizer.refresh_fp32_params()
        for partition in self.partitions():
            state = self.optimizer.state[partition]
            for slot, fresh in fresh_state(self.settings, partition).items():
                state.setdefault(slot, fresh).zero_()
        if stage in (1, 2):
            # DeepSpeed does so after its first step, which is too late to load into.
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()


class DeepSpeedShards:
    """See `manta.actors.backends.sharded.Shards`."""

    def __init__(
        self, model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup
    ) -> None:
        refuse_parts(settings)
        self._stage = settings.deepspeed.stage
        self._clip_norm = settings.clip_norm
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)
        if self._world_size != dist.get_world_size():
            raise ValueError("learner.backend: deepspeed works over all ranks of a learner only")
        self.device = next(model.parameters()).device
        kept = vars(model).get(_ENGINE)
        if kept is None:
            kept = _start(model, settings, group)
            # Past nn.Module, which would make the engine a part of the model.
            vars(model)[_ENGINE] = kept
        elif kept.settings != settings:
            raise ValueError("this model was made over to DeepSpeed with other learner settings")
        self._kept = cast(_Engine, kept)
        self._kept.begin()
        self._parameters = dict(model.named_parameters())
        self.shapes = self._kept.shapes
        self.trained = [name for name, each in self._parameters.items() if each.requires_grad]
        self.slots = slots_of(settings)
        self._together = ExitStack()

    def forward(
        self, rows: Sequence[Row], wants: Sequence[Want], temperature: float
    ) -> dict[str, Tensor]:
        shapes: dict[str, torch.Size] = {}

        def question(model: nn.Module) -> Tensor:
            found = evaluate(model, rows, wants, temperature)
            shapes.update({name: values.shape[1:] for name, values in found.items()})
            return torch.cat([values.flatten(1) if values.ndim > 1 else values[:, None]
                              for values in found.values()], 1)  # fmt: skip

        answer = cast(Tensor, self._kept.engine(question))
        widths = [shape.numel() for shape in shapes.values()]
        parts = zip(shapes.items(), torch.split(answer, widths, 1), strict=True)
        return {name: values.reshape(-1, *shape) for (name, shape), values in parts}

    def end_evaluation(self) -> None:
        """DeepSpeed shares parameters out again after each pass."""

    def zero_gradient(self) -> None:
        engine = self._kept.engine
        engine.optimizer.zero_grad()
        if self._stage:
            # Left alone, DeepSpeed sums gradients in the order in which autograd has them, which is
            # not the same on ranks with other rows: it would add up those of other parameters.
            self._together.enter_context(engine.coalesce_grad_reduction())

    def backward(self, loss: Tensor, is_last: bool) -> None:
        engine = self._kept.engine
        engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over the ranks, and ours is a sum.
        engine.backward(loss * self._world_size)
        if is_last:
            for name in self.trained:
                parameter = self._parameters[name]
                if parameter.grad is None:
                    # Of an expert that no row went to here, but to which one may have elsewhere.
                    parameter.grad = torch.zeros(self.shapes[name], device=self.device)
            self._together.close()

    def step(self, learning_rate: float, is_wanted: bool) -> tuple[float, bool]:
        engine, optimizer = self._kept.engine, self._kept.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        norm = 0.0
        if self._stage == 0:
            norm = self._clip()
            is_wanted = is_wanted and math.isfinite(norm)
        optimizer.is_open = is_wanted
        engine.step()
        if self._stage:
            norm = float(engine.get_global_grad_norm())
        return norm, is_wanted and engine.was_step_applied()

    def weight(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        if self._stage < 3:
            return parameter.detach()
        from deepspeed import zero

        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def state(self, name: str, slot: str | None) -> Tensor:
        parameter = self._parameters[name]
        if slot is None and (self._stage == 0 or name not in self.trained):
            return self.weight(name)
        if self._stage == 0:
            return cast(Tensor, self._kept.optimizer.state[parameter][slot])
        from deepspeed import utils

        if slot is None:
            return cast(Tensor, utils.safe_get_full_fp32_param(parameter))
        return cast(Tensor, utils.safe_get_full_optimizer_state(parameter, slot))

    def put(self, name: str, slot: str | None, whole: Tensor) -> None:
        parameter = self._parameters[name]
        if self._stage == 3:
            self._put_part(parameter, name in self.trained, slot, whole)
            return
        if slot is None:
            parameter.data.copy_(whole)
        elif self._stage == 0:
            self._kept.optimizer.state[parameter][slot].copy_(whole)
        if self._stage and name in self.trained:
            from deepspeed import utils

            if slot is None:
                utils.safe_set_full_fp32_param(parameter, whole)
            else:
                utils.safe_set_full_optimizer_state(parameter, whole, slot)

    def settle(self, updates: int) -> None:
        for partition in self._kept.partitions():
            state = self._kept.optimizer.state[partition]
            if "step" in state:
                state["step"].fill_(updates)

    def _put_part(
        self, parameter: nn.Parameter, is_trained: bool, slot: str | None, whole: Tensor
    ) -> None:
        """Stage 3 takes this rank's part, cut from the flat tensor and filled up with zeros."""
        from deepspeed import utils, zero

        if slot is None:
            with zero.GatheredParameters([parameter], modifier_rank=0):
                if self._rank == 0:
                    parameter.data.copy_(whole)
        if not is_trained:
            return
        size = cast(Any, parameter).ds_tensor.numel()
        flat = whole.flatten()
        filled = nn.functional.pad(flat, (0, size * self._world_size - len(flat)))
        part = filled[self._rank * size : (self._rank + 1) * size]
        if slot is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, slot)

    def _clip(self) -> float:
        """Without ZeRO every rank has the whole gradient; its norm before clipping."""
        parameters = (self._parameters[name] for name in self.trained)
        gradients = [each.grad for each in parameters if each.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if 0 < self._clip_norm < norm < math.inf:
            for gradient in gradients:
                gradient.mul_(self._clip_norm / norm)
        return norm


def _start(model: nn.Module, settings: LearnerSettings, group: dist.ProcessGroup) -> _Engine:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    _check(settings, {each.dtype for each in model.parameters()}, next(model.parameters()).device)
    trained = [each for each in model.parameters() if each.requires_grad]
    if not trained:
        raise ValueError("the model has no trainable parameters: nothing to learn")
    for parameter in model.parameters():
        dist.broadcast(parameter.data, group_src=0, group=group)
    groups = groups_of(
        settings,
        [each for each in trained if each.ndim >= 2],
        [each for each in trained if each.ndim < 2],
    )
    # At a learning rate of 0 nothing that DeepSpeed does meanwhile can move a weight.
    optimizer = cast("_AdamW | _Sgd", make_optimizer(settings, groups, _AdamW, _Sgd))
    config = whole_config(settings, sum(shape.numel() for shape in shapes.values()))
    if trained[0].device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    # It calls collectives by their old names, at every step.
    warnings.filterwarnings("ignore", ".*is deprecated. Please use `torch.dist", FutureWarning)
    # Else it tries a compiler on every operator it has, for one that training does not use.
    deepspeed.ops.__compatible_ops__ = {}
    with _quiet():
        engine, *_ = deepspeed.initialize(model=_Asked(model), optimizer=optimizer, config=config)
    if settings.deepspeed.stage == 3:
        head = cast(nn.Linear, model.get_output_embeddings())  # type: ignore[operator]
        for each in head.parameters(recurse=False):
            # Read by `evaluate` itself, in no forward pass of the head's.
            deepspeed.zero.register_external_parameter(engine.module, each)
    return _Engine(engine, optimizer, shapes, settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without DeepSpeed's warning of optimizers that it has not tested, which our tests have."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def _check(settings: LearnerSettings, dtypes: set[torch.dtype], device: torch.device) -> None:
    if dtypes != {torch.float32}:
        raise ValueError(
            "learner.backend: deepspeed trains float32 parameters, the model has "
            f"{sorted(map(str, dtypes))}: set learner.backend to fsdp or plain"
        )
    if settings.deepspeed.offload_optimizer == "cpu" and device.type == "cpu":
        raise ValueError(
            "learner.deepspeed.offload_optimizer: cpu is for a learner on a GPU, and this one "
            "computes on the CPU: remove it"
        )
