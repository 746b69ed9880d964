"""Advantage estimators against numbers worked by hand and by plain float64 loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.algorithms.advantages import gae, group_relative, return_to_go

ROW_T = torch.tensor([0, 0, 0, 2, 3, 3])  # row 1 has no trained token


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_group_relative_by_hand() -> None:
    # Rewards 1, 0, 0, 1: mean 1/2, unbiased variance 4 * (1/4) / 3 = 1/3.
    advantages = group_relative(
        torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([5, 5, 5, 5]), True, 0.0
    )
    half = 0.5 * math.sqrt(3)
    torch.testing.assert_close(advantages, f64([half, -half, -half, half]))


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    # Rewards 0 and 2: mean 1, unbiased variance 2.
    advantages = group_relative(torch.tensor([0.0, 2.0]), torch.tensor([0, 0]), True, 0.5)
    torch.testing.assert_close(advantages, f64([-1.0, 1.0]) / (math.sqrt(2) + 0.5))


def test_without_std_only_the_mean_is_subtracted() -> None:
    advantages = group_relative(
        torch.tensor([1.0, 5.0, 2.0, 4.0]), torch.tensor([1, 0, 1, 1]), False, 1e-6
    )
    torch.testing.assert_close(advantages, f64([-4 / 3, 0.0, -1 / 3, 5 / 3]))


def test_interleaved_groups_of_any_size_match_numpy() -> None:
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 7, 40) * 10 - 3
    rewards = generator.normal(size=40) * 3 + 100
    expected = np.empty(40)
    for name in set(groups.tolist()):
        of_group = rewards[groups == name]
        std = of_group.std(ddof=1) if len(of_group) > 1 else 0.0
        expected[groups == name] = (of_group - of_group.mean()) / (std + 1e-4)
    advantages = group_relative(torch.from_numpy(rewards), torch.from_numpy(groups), True, 1e-4)
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("reward", [0.1, 1e6 + 0.3, -7.7])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_rewards_give_exactly_zero(reward: float, size: int) -> None:
    rewards = torch.full((size,), reward, dtype=torch.float32)
    advantages = group_relative(rewards, torch.zeros(size, dtype=torch.int64), True, 1e-12)
    assert advantages.tolist() == [0.0] * size


@given(st.permutations(range(6)))
def test_group_relative_follows_a_permutation_of_the_samples(order: list[int]) -> None:
    rewards, groups = f64([3.0, 1.0, 4.0, 1.0, 5.0, 9.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    straight = group_relative(rewards, groups, True, 1e-6)
    permuted = group_relative(rewards[order], groups[order], True, 1e-6)
    torch.testing.assert_close(permuted, straight[order], rtol=1e-12, atol=1e-12)


def test_return_to_go_by_hand() -> None:
    rewards = f64([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    returns = return_to_go(rewards, ROW_T, gamma=0.5)
    # Row 0: 1 + 0.5 * (2 + 0.5 * 4) = 3; row 2: 8; row 3: 16 + 0.5 * 32 = 32.
    torch.testing.assert_close(returns, f64([3.0, 4.0, 4.0, 8.0, 32.0, 32.0]))
    torch.testing.assert_close(
        return_to_go(rewards, ROW_T, gamma=1.0), f64([7.0, 6.0, 4.0, 8.0, 48.0, 32.0])
    )


def test_gae_by_hand() -> None:
    rewards = f64([0.0, 0.0, 1.0, 2.0, 0.0, -1.0])
    values = f64([0.5, 0.25, 0.5, 1.0, 0.0, 1.0])
    # Row 0, gamma 1/2: delta = 1/8 - 1/2, 1/4 - 1/4, 1 - 1/2 = -3/8, 0, 1/2; factor 1/4.
    # Row 2: delta = 1. Row 3: delta = 1/2, -2.
    torch.testing.assert_close(
        gae(rewards, values, ROW_T, gamma=0.5, lam=0.5),
        f64([-3 / 8 + 1 / 32, 1 / 8, 1 / 2, 1.0, 0.5 - 0.5, -2.0]),
    )


def gae_by_loop(
    rewards: np.ndarray, values: np.ndarray, rows: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    advantages = np.zeros(len(rewards))
    for t in reversed(range(len(rewards))):
        inside = t + 1 < len(rewards) and rows[t + 1] == rows[t]
        delta = rewards[t] + gamma * (values[t + 1] if inside else 0.0) - values[t]
        advantages[t] = delta + gamma * lam * (advantages[t + 1] if inside else 0.0)
    return advantages


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), max_size=8),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_gae_and_returns_match_a_loop(
    lengths: list[int], gamma: float, lam: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    rewards, values = generator.normal(size=(2, len(rows)))
    row_T, rewards_T = torch.from_numpy(rows), torch.from_numpy(rewards)
    np.testing.assert_allclose(
        gae(rewards_T, torch.from_numpy(values), row_T, gamma, lam).numpy(),
        gae_by_loop(rewards, values, rows, gamma, lam),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        return_to_go(rewards_T, row_T, gamma).numpy(),
        gae_by_loop(rewards, np.zeros(len(rows)), rows, gamma, 1.0),
        atol=1e-12,
    )
