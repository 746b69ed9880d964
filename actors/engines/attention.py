"""Attention of one new token per row over cached keys and values, without copying them.

Registered with transformers under `GROUPED`; everything but that one shape goes to the library's
own scaled dot-product attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "manta_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """`query` [B, G*H, Q, D] over `key`, `value` [B, H, L, D]; returns [B, Q, G*H, D].

    With Q = 1 and an additive mask on a CPU, the G query heads that share a key head become the
    rows of one small matrix product, so the cache is read once and where it lies. The library's
    way repeats it G times, and on one query its fused kernel is slower than two plain products.
    """
    batch, heads, queries, width = query.shape
    if (
        queries != 1
        or attention_mask is None
        or attention_mask.dtype == torch.bool
        or query.device.type != "cpu"
    ):
        result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    key_heads = key.shape[1]
    grouped = query.reshape(batch, key_heads, heads // key_heads, width)
    scores = torch.matmul(grouped * (scaling or width**-0.5), key.transpose(2, 3))
    weights = torch.softmax(scores.add_(attention_mask), dim=-1, dtype=torch.float32)
    mixed = torch.matmul(weights.to(value.dtype), value)
    return mixed.reshape(batch, 1, heads, value.shape[-1]), None


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Makes `model` attend by `grouped_attention`."""
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)
