"""Value loss and explained variance against direct loops and definitions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manta.algorithms.aggregate import denominators, row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import CriticSettings, KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_stage import token_stage
from manta.algorithms.tokens import TokenBatch
from manta.algorithms.values import value_figures, value_loss

COUNTS = [3, 0, 1, 4, 2]
PPO = dataclasses.replace(
    PRESETS["ppo"],
    gamma=0.9,
    critic=CriticSettings(clip=0.3, loss_coef=0.5),
    kl=KlSettings(coef=0.1, estimator="k1", placement="reward"),
)


def alone(values: Tensor) -> Tensor:
    return values


def f64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_gradient_of_the_value_loss_is_that_of_finite_differences(clip: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    value_T, old_T, return_T = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    loss = lambda values_T: value_loss(values_T, old_T, return_T, clip).loss_T  # noqa: E731
    assert torch.autograd.gradcheck(loss, value_T.requires_grad_())
    if clip is not None:
        assert 0 < int(value_loss(value_T, old_T, return_T, clip).clipped_T.sum()) < 40


def test_value_loss_by_hand() -> None:
    """Inside the bounds; outside towards the return (clipped); outside away from it (not)."""
    value_T = f64([0.1, 1.0, -1.0]).requires_grad_()
    found = value_loss(value_T, f64([0.0, 0.0, 0.0]), f64([0.5, 2.0, 2.0]), 0.2)
    assert found.loss_T.tolist() == pytest.approx([0.4**2 / 2, 1.8**2 / 2, 3.0**2 / 2])
    assert found.clipped_T.tolist() == [False, True, False]
    (gradient_T,) = torch.autograd.grad(found.loss_T.sum(), value_T)
    assert gradient_T.tolist() == pytest.approx([-0.4, 0.0, -3.0])


def test_without_a_clip_it_is_half_the_squared_error() -> None:
    found = value_loss(f64([1.0, 5.0]), f64([0.0, 0.0]), f64([2.0, 2.0]), None)
    assert found.loss_T.tolist() == [0.5, 4.5]
    assert not found.clipped_T.any()


@dataclasses.dataclass(frozen=True)
class Case:
    rewards: np.ndarray
    keep: np.ndarray
    old: np.ndarray
    current: np.ndarray
    logprobs: np.ndarray
    reference: np.ndarray

    @staticmethod
    def random(seed: int) -> Case:
        generator = np.random.default_rng(seed)
        total = sum(COUNTS)
        old = generator.normal(size=total)
        return Case(
            generator.normal(size=len(COUNTS)),
            generator.choice([0.0, 1.0, 1.0], len(COUNTS)),
            old,
            old + generator.normal(size=total) * 0.5,
            *generator.normal(size=(2, total)),
        )

    def batch(self, algorithm: AlgorithmSettings) -> TokenBatch:
        columns = {
            "advantage": torch.from_numpy(self.rewards),
            "keep": torch.from_numpy(self.keep),
        }
        counts_R = torch.tensor(COUNTS)
        batch = flatten(
            algorithm,
            counts_R,
            columns,
            denominators(counts_R, row_weight(columns)),
            behaviour_T=torch.from_numpy(self.logprobs),
            reference_T=torch.from_numpy(self.reference),
            value_T=torch.from_numpy(self.old),
        )
        return token_stage(algorithm, batch, alone)


def by_loop(case: Case, algorithm: AlgorithmSettings) -> tuple[np.ndarray, np.ndarray, float]:
    """Whitened advantages, returns and the value loss, token by token as the papers write them."""
    assert algorithm.critic is not None and algorithm.critic.clip is not None
    advantages, returns = np.zeros(sum(COUNTS)), np.zeros(sum(COUNTS))
    start = 0
    for reward, count in zip(case.rewards, COUNTS, strict=True):
        last = 0.0
        for t in reversed(range(start, start + count)):
            r = -algorithm.kl.coef * (case.logprobs[t] - case.reference[t])
            is_last = t == start + count - 1
            r += reward if is_last else 0.0
            following = 0.0 if is_last else case.old[t + 1]
            delta = r + algorithm.gamma * following - case.old[t]
            last = delta + algorithm.gamma * algorithm.gae_lambda * last
            advantages[t], returns[t] = last, last + case.old[t]
        start += count
    weights = np.repeat(case.keep, COUNTS)
    loss = 0.0
    for t, weight in enumerate(weights):
        low, high = case.old[t] - algorithm.critic.clip, case.old[t] + algorithm.critic.clip
        clipped = min(max(case.current[t], low), high)
        loss += weight * 0.5 * max(
            (case.current[t] - returns[t]) ** 2, (clipped - returns[t]) ** 2
        )  # fmt: skip
    mean = np.average(advantages, weights=weights)
    spread = np.sqrt(np.average((advantages - mean) ** 2, weights=weights) + 1e-8)
    return (advantages - mean) / spread, returns, loss / weights.sum()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_gae_whitening_and_value_clipping_match_a_loop(seed: int) -> None:
    case = Case.random(seed)
    if not case.keep[np.array(COUNTS) > 0].any():
        return
    advantages, returns, loss = by_loop(case, PPO)
    batch = case.batch(PPO)
    kept = np.repeat(case.keep, COUNTS) > 0
    np.testing.assert_allclose(batch.advantage_T.numpy()[kept], advantages[kept], rtol=1e-9)
    assert batch.return_T is not None
    np.testing.assert_allclose(batch.return_T.numpy(), returns, rtol=1e-9, atol=1e-12)
    terms = Objective(PPO).critic_loss(batch, {"value": torch.from_numpy(case.current)})
    assert float(terms.loss) == pytest.approx(0.5 * loss)
    assert float(terms.sums["critic/value_loss"]) == pytest.approx(loss)


def test_the_objective_is_the_policy_s_plus_the_critic_s() -> None:
    case = Case.random(3)
    batch = case.batch(PPO)
    objective = Objective(PPO)
    assert objective.wants == ("logprob", "value")
    stats = {
        "logprob": torch.from_numpy(case.logprobs),
        "value": torch.from_numpy(case.current),
    }
    both, critic = objective.loss(batch, stats), objective.critic_loss(batch, stats)
    policy = float(both.sums["policy_loss"])
    assert float(both.loss) == pytest.approx(policy + float(critic.loss))
    assert float(both.sums["loss"]) == pytest.approx(float(both.loss))
    assert {"critic/value_loss", "critic/clip_fraction"} <= both.sums.keys()


def test_tokens_that_do_not_count_may_have_any_value() -> None:
    case = dataclasses.replace(Case.random(3), keep=np.array([1.0, 1.0, 0.0, 1.0, 1.0]))
    value_T = torch.from_numpy(case.current)
    wanted = Objective(PPO).critic_loss(case.batch(PPO), {"value": value_T})
    broken_T = value_T.clone()
    broken_T[3] = math.inf
    found = Objective(PPO).critic_loss(case.batch(PPO), {"value": broken_T})
    assert float(found.loss) == float(wanted.loss)


def test_gae_without_values_is_refused() -> None:
    case = Case.random(0)
    batch = dataclasses.replace(case.batch(PPO), value_T=None)
    with pytest.raises(ValueError, match="advantage is gae but the batch has no values"):
        token_stage(PPO, batch, alone)
    with pytest.raises(ValueError, match="value loss needs a critic"):
        Objective(PPO).critic_loss(batch, {"value": torch.from_numpy(case.current)})


def test_explained_variance_is_its_definition() -> None:
    generator = np.random.default_rng(0)
    returns = generator.normal(3, 2, 40)
    values = 0.7 * returns + generator.normal(size=40) * 0.5
    weights = generator.integers(0, 3, 40).astype(float)
    error = returns - values
    mean, error_mean = np.average(returns, weights=weights), np.average(error, weights=weights)
    unexplained = np.average((error - error_mean) ** 2, weights=weights)
    wanted = 1 - unexplained / np.average((returns - mean) ** 2, weights=weights)
    parts = [slice(0, 7), slice(7, 7), slice(7, 40)]
    value_T, return_T, weight_T = (torch.from_numpy(each) for each in (values, returns, weights))
    found = value_figures(value_T, return_T, weight_T, alone)
    assert found["explained_variance"] == pytest.approx(wanted, rel=1e-10)
    assert found["return_mean"] == pytest.approx(mean)
    assert found["value_mean"] == pytest.approx(np.average(values, weights=weights))
    assert 0.1 < wanted < 0.95
    # What ranks give their all-reduce adds up, also that of one without tokens.
    sums: list[Tensor] = []

    def collect(values: Tensor) -> Tensor:
        sums.append(values)
        return values

    for part in parts:
        value_figures(value_T[part], return_T[part], weight_T[part], collect)
    together = value_figures(value_T[:1], return_T[:1], weight_T[:1], lambda _: sum(sums))  # type: ignore[arg-type,return-value]
    assert together == pytest.approx(found)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1.0, 2.0, 4.0], 1.0),
        ([7.0, 7.0, 7.0], 0.0),
        # Errors -3, 0 and 3 (variance 6) of returns with variance 14/9
        ([4.0, 2.0, 1.0], 1 - 6 / (14 / 9)),
    ],
)
def test_explained_variance_of_a_right_a_constant_and_a_wrong_critic(
    values: list[float], wanted: float
) -> None:
    found = value_figures(f64(values), f64([1.0, 2.0, 4.0]), torch.ones(3), alone)
    assert found["explained_variance"] == pytest.approx(wanted)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_returns_that_do_not_vary_have_no_explained_variance(size: int) -> None:
    found = value_figures(
        torch.arange(float(size)), torch.full((size,), 0.1), torch.ones(size), alone
    )
    assert "explained_variance" not in found
    assert ("return_mean" in found) == (size > 0)
