"""Causal attention within documents that lie one behind the other in one sequence.

Registered with transformers under `PACKED`. Owns the kernel by device; how rows become documents is
`manta.actors.models.layout`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from manta.actors.models.documents import Documents, Run

PACKED = "manta_packed"


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
    itself and over what that continues; returns [1, N, G*H, D]. Without documents it is the
    library's own attention."""
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
    """One call for each run of equally long documents, as a batch: views into what is packed, but
    for the keys and values of what they continue, which every one of them gets a copy of."""
    runs, indices = documents.runs, documents.on(query_NHD.device)
    sizes = [run.count * run.length for run in runs]
    split = [torch.split(tensor, sizes) for tensor in (query_NHD, key_NHD, value_NHD)]
    is_grouped = query_NHD.shape[1] != key_NHD.shape[1]
    parts = []
    for i, (run, query, key, value) in enumerate(zip(runs, *split, strict=True)):
        mixed = scaled_dot_product_attention(
            _batch(query, run.count).transpose(1, 2),
            _seen_by(run, indices.after[i], key, key_NHD).transpose(1, 2),
            _seen_by(run, indices.after[i], value, value_NHD).transpose(1, 2),
            attn_mask=indices.masks[i],
            is_causal=not run.before,
            scale=scaling,
            enable_gqa=is_grouped,
        )
        parts.append(mixed.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _seen_by(run: Run, after: Tensor, own: Tensor, states_NHD: Tensor) -> Tensor:
    """[documents, tokens that each sees, H, D] of keys or values; `own` are those of the run, which
    continue `after`."""
    own = _batch(own, run.count)
    if not run.before:
        return own
    end = run.start + run.continued * run.before
    continued = _batch(states_NHD[run.start : end], run.continued)
    return torch.cat([continued.index_select(0, after), own], dim=1)


def _batch(states_NHD: Tensor, count: int) -> Tensor:
    """[count, N / count, H, D]"""
    return states_NHD.view(count, -1, *states_NHD.shape[1:])


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

    # Autocast leaves rotated queries and keys wide
    query_NHD, key_NHD = query_NHD.to(value_NHD.dtype), key_NHD.to(value_NHD.dtype)
    indices = documents.on(query_NHD.device)
    if not documents.is_plain:
        key_NHD, value_NHD = key_NHD[indices.seen], value_NHD[indices.seen]
    # With more keys than queries the last query sees all: causality counts from the ends
    mixed = varlen_attn(
        query_NHD,
        key_NHD,
        value_NHD,
        indices.borders,
        indices.borders_seen,
        max(documents.lengths()),
        max(documents.lengths_seen()),
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
