"""What the learner is told (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from manta.actors.worker_range import RankRange, ranks_of
from manta.envs.records import Json

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]

BACKEND_NAMES = ("plain", "fsdp", "deepspeed")

OFFLOADING = ("plain",)
"""Those that can leave their device to engines: `manta.actors.backends.protocol.Offloads`."""

ADAPTING = ("plain",)
"""Those that train and publish an adapter alone, where the model has one."""

ON_CPU, ON_GPU = "gloo", "cpu:gloo,cuda:nccl"
"""What ranks speak through; on GPUs small numbers that are on the CPU still go there."""

CRITIC = "critic"
"""The critic's name among the residents; its tensors are called `critic.head.weight` and so on."""

REWARD = "reward"
"""The reward model's."""

PROCESS = "process"
"""The implicit process reward model's."""

HOLDING_RESIDENTS = ("plain",)
"""Those that train modules beside the policy: `manta.actors.backends.protocol.HoldsResidents`."""


WHOLE_MATRICES = ("plain",)
"""Those whose ranks hold whole matrices, as the optimizer `muon` needs them."""


@dataclass(frozen=True, slots=True)
class FsdpSettings:
    """`learner.fsdp:`. Master weights, gradients and optimizer state are float32 in any case.

    `checkpoint_activations` keeps a layer's input only and computes the rest again in the backward
    pass; `offload: cpu` keeps shards and optimizer state in host memory, for learners on GPUs.
    """

    checkpoint_activations: bool = False
    offload: Literal["none", "cpu"] = "none"


@dataclass(frozen=True, slots=True)
class DeepSpeedSettings:
    """`learner.deepspeed:`, for models in float32. `stage` says what ZeRO (arXiv 1910.02054) shares
    out among the ranks: nothing (0), optimizer state (1), gradients too (2), parameters too (3).
    Gradients of an update's micro-batches add up whole on each rank before they are shared out.

    `offload_optimizer: cpu` is for learners on GPUs. `config` are further keys of DeepSpeed's own
    configuration; which of them, says `manta.actors.backends.deepspeed_config`.
    """

    stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: Literal["none", "cpu"] = "none"
    config: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """`learner:` in a run file: the learner named `policy`.

    `backend` is one of `BACKEND_NAMES` or a plug-in's `module:attribute`, called like a class of
    `manta.actors.backends`: with the model, these settings and the process group or None.
    `tokens_per_micro_batch` bounds the tokens of a micro-batch (there is no padding): larger ones
    fall out of a CPU's caches (a tenth slower, measured at width 256), GPUs want more;
    `precision` is what matrices are multiplied in (`manta.actors.models.precision`), on `plain` and
    `fsdp`;
    `optimizer` is described in `manta.actors.backends.torch_optimizer`; `momentum` is `sgd`'s;
    `learning_rate`, `warmup_steps` (a linear ramp) and `decay` hold for stages that say nothing
    else; `threads` are torch threads of each rank (0: all cores that
    it may use, shared among the node's ranks); with `devices` 1 each rank computes on a GPU of its
    own, with 0 on the CPU. A group whose ranks die is followed by another, at most `max_restarts`
    times in a row without a newly finished step. `fsdp` and `deepspeed` are for the backends of
    these names.
    """

    backend: str = "plain"
    workers: int | RankRange = 1
    threads: int = 0
    devices: Literal[0, 1] = 0
    tokens_per_micro_batch: int = 2560
    precision: Precision = "auto"
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    adam_epsilon: float = 1e-8
    momentum: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 0
    decay: Literal["constant", "linear"] = "constant"
    max_restarts: int = 3
    fsdp: FsdpSettings = field(default_factory=FsdpSettings)
    deepspeed: DeepSpeedSettings = field(default_factory=DeepSpeedSettings)

    @property
    def ranks(self) -> RankRange:
        return ranks_of(self.workers)
