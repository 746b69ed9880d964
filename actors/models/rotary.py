"""Rotary positions in fewer passes over memory than transformers' own, while learning on a CPU.

Owns the rotation and the attention layers that use it, of architectures that do nothing else to
queries and keys. What attends to what stays with `manta.actors.models.packed_attention`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from manta.actors.models.mixed_in import mix_in
from manta.actors.models.packed_attention import PACKED, packed_attention

_KNOWN = ("LlamaAttention", "Qwen2Attention")


def merge_rotary(model: nn.Module) -> None:
    """Makes the attention layers of `model` rotate by `rotate`, where they are known."""
    mix_in(model, _MergedAttention, _KNOWN)


def rotate(x_BLHD: Tensor, cos_BLD: Tensor, sin_BLD: Tensor) -> Tensor:
    """Pairs (x[i], x[i + D / 2]) turned by their angles (RoFormer, arXiv 2104.09864, in the layout
    of halves), with gradients to x. The first axis of `cos_BLD` and `sin_BLD` may be 1."""
    return cast(Tensor, _Rotation.apply(x_BLHD, cos_BLD[:, :, None], sin_BLD[:, :, None]))  # type: ignore[no-untyped-call]


class _MergedAttention(nn.Module):
    config: PreTrainedConfig
    head_dim: int
    scaling: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: object | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        is_learning = (
            torch.is_grad_enabled()
            and past_key_values is None
            and self.config._attn_implementation == PACKED
            and hidden_states.dtype == torch.float32
            and hidden_states.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
        )
        if not is_learning:
            return cast(
                tuple[Tensor, Tensor | None],
                super().forward(
                    hidden_states,
                    position_embeddings=position_embeddings,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    **kwargs,
                ),
            )
        places = hidden_states.shape[:-1]
        query, key, value = (
            project(hidden_states).view(*places, -1, self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        mixed, weights = packed_attention(
            self,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attention_mask,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(mixed.reshape(*places, -1)), weights


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x_BLHD.shape[-1] // 2
        turned = x_BLHD * cos
        turned[..., :half].addcmul_(x_BLHD[..., half:], sin[..., :half], value=-1)
        turned[..., half:].addcmul_(x_BLHD[..., :half], sin[..., half:])
        return turned

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        (given,) = gradients
        half = given.shape[-1] // 2
        turned = given * cos
        turned[..., :half].addcmul_(given[..., half:], sin[..., half:])
        turned[..., half:].addcmul_(given[..., :half], sin[..., :half], value=-1)
        return turned, None, None
