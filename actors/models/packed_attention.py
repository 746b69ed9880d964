"""Causal attention within documents that lie one behind the other in one sequence.

Registered with transformers under `PACKED`. Owns the kernel by device; how rows become documents is
`manta.actors.models.layout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "manta_packed"


@dataclass(frozen=True, slots=True)
class Documents:
    """`lengths`: tokens of each, in the order in which they lie; none is empty."""

    lengths: tuple[int, ...]

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(how many, their length) of neighbours of equal length."""
        return [(len(list(equal)), length) for length, equal in groupby(self.lengths)]

    def positions(self) -> Tensor:
        """int64[tokens]: each token's place in its document."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    def borders(self, device: torch.device) -> Tensor:
        """int32[documents + 1]: where they begin and end."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """`query` [1, G*H, N, D] over `key`, `value` [1, H, N, D], each token over its document up to
    itself; returns [1, N, G*H, D]. Without documents it is the library's own attention."""
    if documents is None:
        result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    query_NHD, key_NHD, value_NHD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    is_half = value.dtype in (torch.float16, torch.bfloat16)
    attend = _by_one_kernel if value.is_cuda and is_half else _by_length
    return attend(query_NHD, key_NHD, value_NHD, documents, scaling)[None], None


def _by_length(
    query_NHD: Tensor,
    key_NHD: Tensor,
    value_NHD: Tensor,
    documents: Documents,
    scaling: float | None,
) -> Tensor:
    """One call for each run of equally long documents, as a batch: views into what is packed."""
    sizes = [count * length for count, length in documents.runs]
    split = [torch.split(tensor, sizes) for tensor in (query_NHD, key_NHD, value_NHD)]
    is_grouped = query_NHD.shape[1] != key_NHD.shape[1]
    parts = []
    for (count, length), *run in zip(documents.runs, *split, strict=True):
        query, key, value = (part.unflatten(0, (count, length)).transpose(1, 2) for part in run)
        mixed = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=is_grouped
        )
        parts.append(mixed.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _by_one_kernel(
    query_NHD: Tensor,
    key_NHD: Tensor,
    value_NHD: Tensor,
    documents: Documents,
    scaling: float | None,
) -> Tensor:
    """Flash attention over sequences of their own lengths: 16-bit floats on a GPU."""
    # Not every platform that torch is built for can load it
    from torch.nn.attention.varlen import varlen_attn

    borders, longest = documents.borders(query_NHD.device), max(documents.lengths)
    # Autocast leaves rotated queries and keys wide
    query_NHD, key_NHD = query_NHD.to(value_NHD.dtype), key_NHD.to(value_NHD.dtype)
    mixed = varlen_attn(
        query_NHD,
        key_NHD,
        value_NHD,
        borders,
        borders,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query_NHD.shape[1] != key_NHD.shape[1],
    )
    assert isinstance(mixed, Tensor)
    return mixed


def is_packable(model: nn.Module) -> bool:
    """Whether every layer of `model` mixes tokens only by plain causal attention over all of them,
    called through transformers' interface. Others keep padded rows."""
    config = getattr(model, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    return (
        isinstance(model, PreTrainedModel)
        and getattr(model, "_supports_attention_backend", False)
        and kinds == {"full_attention"}
        and (hasattr(config, "layer_types") or getattr(config, "sliding_window", None) is None)
        and getattr(config, "attn_logit_softcapping", None) is None
        and getattr(config, "is_causal", True)
        and not getattr(config, "is_encoder_decoder", False)
    )


def use_packed_attention(model: nn.Module) -> None:
    """Makes `model` attend by `packed_attention`; does nothing where it does already."""
    assert isinstance(model, PreTrainedModel)
    if model.config._attn_implementation != PACKED:
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, sdpa_mask)
        model.set_attn_implementation(PACKED)
