"""Torch's optimizers as a learner's settings ask for them, and what they keep of a parameter.

- `adamw`: Loshchilov and Hutter, 2019, arXiv 1711.05101.
- `sgd`: with heavy-ball momentum.
- `muon`, for hidden matrices: O is the momentum made orthogonal, by five Newton-Schulz steps in
  bfloat16, and W <- W - rate (0.2 sqrt(max(rows, columns)) O + decay W), after Liu et al., 2025,
  arXiv 2502.16982, section 2.2: updates are as large as AdamW's, so rate and decay are the same.
  All other parameters are AdamW's.

Weight decay applies to matrices (embeddings included), never to norms and biases, as is usual for
transformers. Knows nothing of ranks, names or buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from manta.actors.backends.settings import WHOLE_MATRICES, LearnerSettings

MUON_MOMENTUM = 0.95
"""With Nesterov's look ahead, as in the paper."""

Groups = list[dict[str, Any]]
"""What torch's optimizers take."""


def slots_of(settings: LearnerSettings) -> tuple[str, ...]:
    """What the optimizer of `settings` keeps of each parameter, in its shape."""
    if settings.optimizer == "adamw":
        return ("exp_avg", "exp_avg_sq")
    has_momentum = settings.optimizer == "muon" or settings.momentum
    return ("momentum_buffer",) if has_momentum else ()


def for_the_rest(settings: LearnerSettings) -> LearnerSettings:
    """What steps the parameters that are not hidden matrices."""
    return replace(settings, optimizer="adamw") if settings.optimizer == "muon" else settings


def groups_of(
    settings: LearnerSettings, matrices: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Groups:
    """Parameter groups with their weight decay; those without a parameter are left out."""
    parts = ((matrices, settings.weight_decay), (vectors, 0.0))
    return [{"params": list(part), "weight_decay": decay} for part, decay in parts if len(part)]


def counter_of(settings: LearnerSettings, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer counts its steps with, beside the slots, if it does."""
    if settings.optimizer != "adamw":
        return {}
    return {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}


def fresh_state(settings: LearnerSettings, parameter: Tensor) -> dict[str, Tensor]:
    """The state before the first step: torch would make it in that step, too late to be loaded."""
    state = {slot: torch.zeros_like(parameter) for slot in slots_of(settings)}
    return state | counter_of(settings, parameter)


def make_optimizer(
    settings: LearnerSettings,
    groups: Groups,
    adamw: type[torch.optim.AdamW] = torch.optim.AdamW,
    sgd: type[torch.optim.SGD] = torch.optim.SGD,
) -> torch.optim.Optimizer:
    """Over `groups`, of which there must be one (`muon`: of hidden matrices); at a learning rate of
    0 until it is told one."""
    if settings.optimizer == "muon":
        return torch.optim.Muon(
            groups, lr=0.0, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
    if settings.optimizer == "adamw":
        return adamw(groups, lr=0.0, betas=settings.betas, eps=settings.adam_epsilon, fused=True)
    return sgd(groups, lr=0.0, momentum=settings.momentum)


def refuse_parts(settings: LearnerSettings) -> None:
    """Raises ValueError where the optimizer needs whole matrices, for a backend that cuts them."""
    if settings.optimizer == "muon":
        raise ValueError(
            "learner.optimizer: muon makes whole matrices orthogonal, and learner.backend "
            f"{settings.backend} shares them out among the ranks: choose backend "
            f"{' or '.join(WHOLE_MATRICES)}, or optimizer adamw"
        )
