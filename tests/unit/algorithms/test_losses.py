"""Per-token losses: golden numbers, clip indicators and gradients."""

import math

import pytest
import torch

from manta.algorithms.losses import (
    LOSSES,
    RatioTokens,
    Surrogate,
    clipped_surrogate,
    cross_entropy,
)
from manta.algorithms.settings import AlgorithmSettings

RATIO = [0.5, 0.9, 1.0, 1.25, 1.5, 0.5, 0.9, 1.0, 1.25, 1.5]
ADVANTAGE = [2.0] * 5 + [-2.0] * 5


def logs(ratios: list[float]) -> torch.Tensor:
    return torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64)


def f64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def surrogate(
    logprob: torch.Tensor,
    proximal: torch.Tensor,
    advantage: torch.Tensor,
    low: float,
    high: float,
    dual: float | None = None,
) -> Surrogate:
    settings = AlgorithmSettings("ppo", clip_low=low, clip_high=high, dual_clip=dual)
    rows = torch.zeros(len(logprob), dtype=torch.int64)
    return clipped_surrogate(settings, RatioTokens(logprob, proximal, advantage, rows))


def test_clipped_surrogate_by_hand() -> None:
    proximal = torch.linspace(-3, -1, 10, dtype=torch.float64)
    result = surrogate(logs(RATIO) + proximal, proximal, f64(ADVANTAGE), 0.2, 0.28)
    torch.testing.assert_close(result.ratio_T, f64(RATIO))
    # A > 0: -2 * min(ratio, 1.28); A < 0: 2 * max(ratio, 0.8).
    torch.testing.assert_close(
        result.loss_T, f64([-1.0, -1.8, -2.0, -2.5, -2.56, 1.6, 1.8, 2.0, 2.5, 3.0])
    )
    assert result.figures["clip_fraction_high"].tolist() == [False] * 4 + [True] + [False] * 5
    assert result.figures["clip_fraction_low"].tolist() == [False] * 5 + [True] + [False] * 4


def test_gradient_is_zero_exactly_where_clipped() -> None:
    logprob = logs(RATIO).requires_grad_()
    result = surrogate(logprob, torch.zeros(10, dtype=torch.float64), f64(ADVANTAGE), 0.2, 0.28)
    result.loss_T.sum().backward()
    clipped = result.figures["clip_fraction_low"] | result.figures["clip_fraction_high"]
    # d(-ratio * A) / d logprob = -ratio * A where it is not clipped.
    expected = torch.where(clipped, 0.0, -f64(RATIO) * f64(ADVANTAGE))
    torch.testing.assert_close(logprob.grad, expected)


def test_gradient_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logprob = torch.randn(50, generator=generator, dtype=torch.float64).mul(0.4).requires_grad_()
    proximal, advantage = torch.randn(2, 50, generator=generator, dtype=torch.float64).mul(0.4)
    assert torch.autograd.gradcheck(
        lambda x: surrogate(x, proximal, advantage, 0.2, 0.3).loss_T, (logprob,)
    )


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    generator = torch.Generator().manual_seed(1)
    advantage = torch.randn(20, generator=generator, dtype=torch.float64)
    logprob = torch.randn(20, generator=generator, dtype=torch.float64).requires_grad_()
    on_policy = surrogate(logprob, logprob.detach(), advantage, 0.2, 0.2)
    (gradient,) = torch.autograd.grad(on_policy.loss_T.sum(), logprob)
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
    result = surrogate(torch.tensor([50.0]), torch.zeros(1), torch.tensor([sign]), 0.2, 0.2)
    expected = -1.2 if sign > 0 else math.exp(50.0)
    torch.testing.assert_close(result.loss_T, torch.tensor([expected]))


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_finite_where_float32_knows_no_ratio(name: str) -> None:
    settings = AlgorithmSettings(name, dual_clip=3.0 if name == "clipped_surrogate" else None)
    logprob = torch.tensor([200.0, 200.0, 200.0, 0.5], requires_grad=True)
    advantage, rows = torch.tensor([1.0, 0.0, -1.0, 1.0]), torch.tensor([0, 1, 2, 3])
    chosen, vocabulary = torch.tensor([False, False, False, True]), torch.zeros(4)
    tokens = RatioTokens(logprob, torch.zeros(4), advantage, rows, vocabulary, chosen)
    found = LOSSES[name](settings, tokens)
    assert found.loss_T.isfinite().all()
    found.loss_T.sum().backward()
    assert logprob.grad is not None and logprob.grad.isfinite().all()
    if name == "clipped_surrogate":
        assert logprob.grad[:3].tolist() == [0.0] * 3, "both clips hold"


def test_dual_clip_by_hand() -> None:
    # A = -2: the loss 2 * ratio is held at 2 * 3 from ratio 3 on; A = 2 is not touched.
    ratios, advantage = [2.0, 3.5, 100.0, 100.0], f64([-2.0, -2.0, -2.0, 2.0])
    logprob = logs(ratios).requires_grad_()
    result = surrogate(logprob, torch.zeros(4, dtype=torch.float64), advantage, 0.2, 0.2, dual=3.0)
    torch.testing.assert_close(result.loss_T, f64([4.0, 6.0, 6.0, -2.4]))
    assert result.figures["clip_fraction_dual"].tolist() == [False, True, True, False]
    result.loss_T.sum().backward()
    torch.testing.assert_close(logprob.grad, f64([4.0, 0.0, 0.0, 0.0]))
