"""The rotation against transformers' own, alone and inside a whole model."""

from __future__ import annotations

import torch
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from manta.actors.models.packed_attention import use_packed_attention
from manta.actors.models.rotary import merge_rotary, rotate
from tiny import VOCABULARY, library_model


def test_values_and_gradients_equal_transformers() -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8)
    angles = torch.randn(1, 5, 8)  # more general than rotary positions: halves may differ
    cos, sin = angles.cos(), angles.sin()
    found = []
    for turn in (
        lambda leaf: rotate(leaf, cos, sin),
        lambda leaf: apply_rotary_pos_emb(leaf, leaf, cos, sin, unsqueeze_dim=2)[0],
    ):
        leaf = x.clone().requires_grad_()
        result = turn(leaf)
        (result * factors).sum().backward()
        found.append((result.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_a_model_computes_the_same_with_and_without() -> None:
    tokens = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for is_merged in (False, True):
        model = library_model("qwen2")
        use_packed_attention(model)
        if is_merged:
            merge_rotary(model)
        logits = model(tokens).logits
        logits.logsumexp(-1).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((logits.detach(), gradients))
        with torch.no_grad():
            torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
