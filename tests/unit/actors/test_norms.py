"""The merged norm against transformers' own: values, gradients, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from manta.actors.models.norms import merge_norms


def norms() -> tuple[Qwen2RMSNorm, Qwen2RMSNorm]:
    """transformers' own, and one with the same weights that is merged."""
    torch.manual_seed(0)
    own, merged = Qwen2RMSNorm(24, eps=1e-3), Qwen2RMSNorm(24, eps=1e-3)
    with torch.no_grad():
        own.weight.normal_()
        merged.weight.copy_(own.weight)
    merge_norms(merged)
    return own, merged


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24), (2, 3, 4, 24)])
def test_values_and_gradients_equal_transformers(shape: tuple[int, ...]) -> None:
    own, merged = norms()
    x, factors = torch.randn(shape), torch.randn(shape)
    found = []
    for norm in (own, merged):
        leaf = x.clone().requires_grad_()
        result = norm(leaf)
        (result * factors).sum().backward()
        found.append((result.detach(), leaf.grad, norm.weight.grad))
    torch.testing.assert_close(found[1], found[0], rtol=2e-6, atol=2e-6)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), found[0][0], rtol=2e-6, atol=2e-6)


def test_strided_gradients_are_taken() -> None:
    own, merged = norms()
    x = torch.randn(2, 5, 24)
    found = []
    for norm in (own, merged):
        leaf = x.clone().requires_grad_()
        norm(leaf).transpose(0, 1).sum(0)[:, ::2].sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[1], found[0], rtol=2e-6, atol=2e-6)


def test_other_formats_stay_as_they_were() -> None:
    own, merged = norms()
    x = torch.randn(3, 24).bfloat16()
    assert torch.equal(own.bfloat16()(x), merged.bfloat16()(x))
    assert isinstance(merged, Qwen2RMSNorm)
    assert list(merged.state_dict()) == ["weight"]
