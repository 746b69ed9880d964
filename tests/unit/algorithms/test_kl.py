"""KL estimators: values and gradients exactly, by enumerating a small categorical."""

import math
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from manta.algorithms.kl import estimate, k1, k2, k3

Estimator: TypeAlias = Callable[[Tensor, Tensor], Tensor]

THETA = torch.tensor([0.3, -1.1, 0.7, 0.2, -0.4], dtype=torch.float64)
OTHER = torch.tensor([-0.5, 0.4, 0.1, 1.0, -0.2], dtype=torch.float64).log_softmax(0)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def gradient(of: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(of, theta)[0]


def test_by_hand() -> None:
    policy, other = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    torch.testing.assert_close(k1(policy, other), torch.tensor([math.log(2)]))
    torch.testing.assert_close(k2(policy, other), torch.tensor([math.log(2) ** 2 / 2]))
    torch.testing.assert_close(k3(policy, other), torch.tensor([0.5 - 1 + math.log(2)]))


def test_estimators_go_by_name() -> None:
    policy, other = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -0.5])
    assert torch.equal(estimate("k1", policy, other), k1(policy, other))
    assert torch.equal(estimate("k2", policy, other), k2(policy, other))
    assert torch.equal(estimate("k3", policy, other), k3(policy, other))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased(estimator: Estimator) -> None:
    log_p = THETA.log_softmax(0)
    expected = (log_p.exp() * estimator(log_p, OTHER)).sum()
    torch.testing.assert_close(expected, divergence(log_p, OTHER), rtol=1e-13, atol=0)


def test_k2_is_biased_and_k3_never_negative() -> None:
    log_p = THETA.log_softmax(0)
    bias = (log_p.exp() * k2(log_p, OTHER)).sum() - divergence(log_p, OTHER)
    assert abs(bias) > 1e-2
    assert (k3(log_p, OTHER) > 0).all()
    assert (k1(log_p, OTHER) < 0).any()


def expected_gradient(estimator: Estimator) -> Tensor:
    """E over tokens of the gradient of the estimator as a loss: sampling is not differentiated."""
    theta = THETA.clone().requires_grad_()
    log_p = theta.log_softmax(0)
    return gradient((log_p.exp().detach() * estimator(log_p, OTHER)).sum(), theta)


def test_gradients_as_losses() -> None:
    theta = THETA.clone().requires_grad_()
    reverse = gradient(divergence(theta.log_softmax(0), OTHER), theta)
    forward = gradient(divergence(OTHER, theta.log_softmax(0)), theta)
    assert (reverse - forward).abs().max() > 1e-2
    torch.testing.assert_close(expected_gradient(k1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(expected_gradient(k2), reverse, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(expected_gradient(k3), forward, rtol=1e-12, atol=1e-15)


def test_k1_in_the_reward_has_the_gradient_of_the_divergence() -> None:
    theta = THETA.clone().requires_grad_()
    reverse = gradient(divergence(theta.log_softmax(0), OTHER), theta)

    def policy_gradient(estimator: Estimator) -> Tensor:
        log_p = theta.log_softmax(0)
        cost = estimator(log_p.detach(), OTHER)
        return gradient((log_p.exp().detach() * cost * log_p).sum(), theta)

    torch.testing.assert_close(policy_gradient(k1), reverse, rtol=1e-12, atol=1e-15)
    assert (policy_gradient(k3) - reverse).abs().max() > 1e-2


@pytest.mark.parametrize("difference", [1e-4, -1e-3, 1e-2, -0.5, 3.0])
def test_k3_is_accurate_in_float32(difference: float) -> None:
    result = k3(torch.zeros(1), torch.tensor([difference])).double()
    d = torch.tensor([difference], dtype=torch.float32).double()
    exact = torch.expm1(d) - d
    assert (result - exact).abs() <= 2e-7 * abs(difference) * max(1.0, math.exp(difference))
