from __future__ import annotations

import pytest
import torch
from torch import nn

from manta.actors.engines.attention import grouped_attention


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_query_equals_attention_with_repeated_heads(
    heads: int, key_heads: int, scaling: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 1, heads, 8, generator=generator).transpose(1, 2)
    memory = torch.randn(2, 3, key_heads, 16, 8, generator=generator)
    key, value = memory[:, :, :, :11]
    lengths = torch.tensor([11, 4, 1])
    seen = torch.arange(11) < lengths[:, None]
    mask = torch.where(seen, 0.0, -torch.inf)[:, None, None]
    out, _ = grouped_attention(nn.Module(), query, key, value, mask, scaling=scaling)
    repeats = heads // key_heads
    want = nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(repeats, dim=1),
        value.repeat_interleave(repeats, dim=1),
        mask,
        scale=scaling,
    )
    torch.testing.assert_close(out, want.transpose(1, 2))


def test_many_queries_go_to_the_library() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=generator)
    out, _ = grouped_attention(nn.Module(), query, key, value, None)
    want = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(out, want.transpose(1, 2))
