"""Per-token losses: golden numbers, clip indicators and gradients."""

import math

import pytest
import torch

from manta.algorithms.losses import clipped_surrogate, cross_entropy

RATIO = [0.5, 0.9, 1.0, 1.25, 1.5, 0.5, 0.9, 1.0, 1.25, 1.5]
ADVANTAGE = [2.0] * 5 + [-2.0] * 5


def logs(ratios: list[float]) -> torch.Tensor:
    return torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64)


def f64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_clipped_surrogate_by_hand() -> None:
    proximal = torch.linspace(-3, -1, 10, dtype=torch.float64)
    result = clipped_surrogate(logs(RATIO) + proximal, proximal, f64(ADVANTAGE), 0.2, 0.28)
    torch.testing.assert_close(result.ratio_T, f64(RATIO))
    # A > 0: -2 * min(ratio, 1.28); A < 0: 2 * max(ratio, 0.8).
    torch.testing.assert_close(
        result.loss_T, f64([-1.0, -1.8, -2.0, -2.5, -2.56, 1.6, 1.8, 2.0, 2.5, 3.0])
    )
    assert result.clipped_high_T.tolist() == [False] * 4 + [True] + [False] * 5
    assert result.clipped_low_T.tolist() == [False] * 5 + [True] + [False] * 4


def test_gradient_is_zero_exactly_where_clipped() -> None:
    logprob = logs(RATIO).requires_grad_()
    result = clipped_surrogate(
        logprob, torch.zeros(10, dtype=torch.float64), f64(ADVANTAGE), 0.2, 0.28
    )
    result.loss_T.sum().backward()
    clipped = result.clipped_low_T | result.clipped_high_T
    # d(-ratio * A) / d logprob = -ratio * A where it is not clipped.
    expected = torch.where(clipped, 0.0, -f64(RATIO) * f64(ADVANTAGE))
    torch.testing.assert_close(logprob.grad, expected)


def test_gradient_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logprob = torch.randn(50, generator=generator, dtype=torch.float64).mul(0.4).requires_grad_()
    proximal, advantage = torch.randn(2, 50, generator=generator, dtype=torch.float64).mul(0.4)
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, proximal, advantage, 0.2, 0.3).loss_T, (logprob,)
    )


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    generator = torch.Generator().manual_seed(1)
    advantage = torch.randn(20, generator=generator, dtype=torch.float64)
    logprob = torch.randn(20, generator=generator, dtype=torch.float64).requires_grad_()
    surrogate = clipped_surrogate(logprob, logprob.detach(), advantage, 0.2, 0.2)
    (gradient,) = torch.autograd.grad(surrogate.loss_T.sum(), logprob)
    (expected,) = torch.autograd.grad((-advantage * logprob).sum(), logprob)
    assert torch.equal(gradient, expected)


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([0, 3, 3, 10, 7, 1])
    logprob = logits.log_softmax(-1)[torch.arange(6), targets]
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(cross_entropy(logprob), expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_huge_ratio_stays_finite_where_the_clip_holds_it(sign: float) -> None:
    # Pessimism by design: the clip bounds what a good token gains, not what a bad one costs.
    result = clipped_surrogate(torch.tensor([50.0]), torch.zeros(1), torch.tensor([sign]), 0.2, 0.2)
    expected = -1.2 if sign > 0 else math.exp(50.0)
    torch.testing.assert_close(result.loss_T, torch.tensor([expected]))
