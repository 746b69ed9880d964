"""What the learner is told (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]

BACKEND_NAMES = ("plain",)

OFFLOADING = ("plain",)
"""Those that can leave their device to engines: `manta.actors.backends.protocol.Offloads`."""

ADAPTING = ("plain",)
"""Those that train and publish an adapter alone, where the model has one."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """`learner:` in a run file: the learner named `policy`.

    `backend` is one of `BACKEND_NAMES` or a plug-in's `module:attribute`, called like a class of
    `manta.actors.backends`: with the model, these settings and the process group or None.
    `tokens_per_micro_batch` bounds the tokens of a micro-batch (there is no padding): larger ones
    fall out of a CPU's caches (a tenth slower, measured at width 256), GPUs want more;
    `precision` is what matrices are multiplied in (`manta.actors.models.precision`);
    `learning_rate`, `warmup_steps` (a linear ramp) and `decay` hold for stages that say nothing
    else; `threads` are torch threads of each rank (0: all cores that
    it may use, shared among the node's ranks).
    """

    backend: str = "plain"
    workers: int = 1
    threads: int = 0
    tokens_per_micro_batch: int = 2560
    precision: Precision = "auto"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    adam_epsilon: float = 1e-8
    momentum: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 0
    decay: Literal["constant", "linear"] = "constant"
