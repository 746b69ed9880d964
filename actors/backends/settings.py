"""What the learner is told (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BACKEND_NAMES = ("plain",)

OFFLOADING = ("plain",)
"""Those that can leave their device to engines: `manta.actors.backends.protocol.Offloads`."""

CRITIC = "critic"
"""The critic's name among the residents; its tensors are called `critic.head.weight` and so on."""

HOLDING_RESIDENTS = ("plain",)
"""Those that train modules beside the policy: `manta.actors.backends.protocol.HoldsResidents`."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """`learner:` in a run file: the learner named `policy`.

    `backend` is one of `BACKEND_NAMES` or a plug-in's `module:attribute`, called like a class of
    `manta.actors.backends`: with the model, these settings and the process group or None.
    `tokens_per_micro_batch` bounds rows x longest row of a micro-batch (padding counted): larger
    ones fall out of a CPU's caches (a tenth slower, measured at width 256), GPUs want more;
    `learning_rate`, `warmup_steps` (a linear ramp) and `decay` hold for stages that say nothing
    else; `threads` are torch threads of each rank (0: all cores that
    it may use, shared among the node's ranks).
    """

    backend: str = "plain"
    workers: int = 1
    threads: int = 0
    tokens_per_micro_batch: int = 2560
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    adam_epsilon: float = 1e-8
    momentum: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 0
    decay: Literal["constant", "linear"] = "constant"
