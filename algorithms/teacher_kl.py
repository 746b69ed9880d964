"""How far the policy is from a teacher, over the whole distribution of each token.

Shapes: T tokens; K + 1 outcomes of each: the teacher's K likeliest tokens, and all others together.
So both are distributions whatever K is. Lumping outcomes together never raises a KL (the data
processing inequality): what is told is at most the KL over the vocabulary, and with K the whole
vocabulary it is that KL. A teacher's distribution cut to K tokens and divided by its sum would pull
the policy's mass off all others, whatever the teacher gives them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def teacher_kl(interpolation: float, teacher_TK: Tensor, policy_TK: Tensor) -> Tensor:
    """[T]: the divergence of two distributions from their log-probs, P the teacher's and Q the
    policy's, which carries gradients.

    With an `interpolation` b of 0 KL(P || Q), of 1 KL(Q || P); between them the generalised
    Jensen-Shannon divergence `b KL(P || M) + (1 - b) KL(Q || M)`, M being b P + (1 - b) Q, of GKD
    (Agarwal et al., arXiv 2306.13649, as the documentation of ms-swift states it: the paper could
    not be read). Divided by b, or by 1 - b, that becomes the former two where b goes to 0 or 1, so
    that near these it is small.
    """
    if interpolation == 0.0:
        return _kl(teacher_TK, policy_TK)
    if interpolation == 1.0:
        return _kl(policy_TK, teacher_TK)
    mixture_TK = torch.logaddexp(
        teacher_TK + math.log(interpolation), policy_TK + math.log1p(-interpolation)
    )
    of_teacher_T, of_policy_T = _kl(teacher_TK, mixture_TK), _kl(policy_TK, mixture_TK)
    return interpolation * of_teacher_T + (1.0 - interpolation) * of_policy_T


def _kl(p_TK: Tensor, q_TK: Tensor) -> Tensor:
    """KL(p || q) of log-probs, [T]."""
    return (p_TK.exp() * (p_TK - q_TK)).sum(-1)


def figures(teacher_TK: Tensor, policy_TK: Tensor) -> dict[str, Tensor]:
    """What is reported of a token, [T] each: both KLs, and how much of each distribution the
    teacher's likeliest tokens are."""
    policy_TK = policy_TK.detach()
    return {
        "teacher_kl_forward": teacher_kl(0.0, teacher_TK, policy_TK),
        "teacher_kl_reverse": teacher_kl(1.0, teacher_TK, policy_TK),
        "teacher_top_mass": -torch.expm1(teacher_TK[:, -1]),
        "policy_top_mass": -torch.expm1(policy_TK[:, -1]),
    }
