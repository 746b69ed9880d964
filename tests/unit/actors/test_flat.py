"""Flat gradients: how long they are, and how they are shortened."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manta.actors.backends.flat import FlatParameters


def filled(number: int) -> FlatParameters:
    flat = FlatParameters(nn.Linear(number // 1000, 1000))
    flat.gradient.normal_(generator=torch.Generator().manual_seed(0)).mul_(1e-3)
    return flat


@pytest.mark.parametrize("number", [1000, 3_000_000])
def test_the_norm_of_millions_is_that_of_float64(number: int) -> None:
    flat = filled(number)
    exact = float(torch.linalg.vector_norm(flat.gradient.double()))
    assert flat.clip(0.0) == pytest.approx(exact, rel=1e-8)


def test_a_long_gradient_is_scaled_down_and_a_short_one_kept() -> None:
    flat = filled(3_000_000)
    before = flat.gradient.clone()
    norm = flat.clip(10.0)
    assert norm < 10.0 and torch.equal(flat.gradient, before)
    assert flat.clip(0.5) == norm
    torch.testing.assert_close(flat.gradient, before * (0.5 / norm), rtol=1e-6, atol=0.0)
    assert flat.clip(0.0) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told_and_left(bad: float) -> None:
    flat = filled(1000)
    flat.gradient[-1] = bad
    norm = flat.clip(0.5)
    assert not norm < float("inf")
    assert float(flat.gradient[0]) != 0.0
