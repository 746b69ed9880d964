"""Root-mean-square norms in fewer passes over memory than transformers' own take.

On a CPU a norm is nothing but reading and writing: written as one operation with a backward of its
own it reads and writes half as often, and keeps nothing for the backward pass that is not kept
anyway. Parameters, their names and other devices' ways stay as they are.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from manta.actors.models.mixed_in import mix_in

_KNOWN = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Those that compute weight * x / sqrt(mean(x^2) + epsilon) (arXiv 1910.07467), nothing else."""


def merge_norms(model: nn.Module) -> None:
    """Makes the norms of `model` compute by `rms_norm` where they are known and on a CPU."""
    mix_in(model, _MergedNorm, _KNOWN)


def rms_norm(x_XD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon), float32[..., D], with gradients."""
    if not torch.is_grad_enabled():
        return _normed(x_XD, weight_D, epsilon)[0]
    return cast(Tensor, _RmsNorm.apply(x_XD, weight_D, epsilon))  # type: ignore[no-untyped-call]


class _MergedNorm(nn.Module):
    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        is_plain = hidden_states.dtype == self.weight.dtype == torch.float32
        if is_plain and hidden_states.device.type == "cpu":
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)
        return cast(Tensor, super().forward(hidden_states))


def _normed(x_XD: Tensor, weight_D: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The result, and 1 / sqrt(mean(x^2) + epsilon), [..., 1]."""
    scale_X1 = torch.linalg.vector_norm(x_XD, dim=-1, keepdim=True)
    scale_X1 = scale_X1.square_().div_(x_XD.shape[-1]).add_(epsilon).rsqrt_()
    return (x_XD * scale_X1).mul_(weight_D), scale_X1


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        result_XD, scale_X1 = _normed(x_XD, weight_D, epsilon)
        ctx.save_for_backward(x_XD, weight_D, scale_X1)
        return result_XD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With s the scale and g the gradient by the result: by x it is
        s * (g * w) - x * s^3 * mean(g * w * x), by the weight the sum of g * x * s."""
        x_XD, weight_D, scale_X1 = ctx.saved_tensors
        (by_result_XD,) = gradients
        width = x_XD.shape[-1]
        product_MD = (by_result_XD * x_XD).reshape(-1, width)
        by_weight_D = product_MD.t() @ scale_X1.view(-1) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, by_weight_D, None
        drift_X1 = (product_MD @ weight_D).view_as(scale_X1).mul_(scale_X1**3).div_(-width)
        by_x_XD = (by_result_XD * weight_D).mul_(scale_X1).addcmul_(x_XD, drift_X1)
        return by_x_XD, by_weight_D, None
