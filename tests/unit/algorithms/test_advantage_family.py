"""Every advantage of a step's rows against its formula in plain loops, and what holds for all.

A new advantage adds a line to CASES.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from manta.algorithms.advantages import ADVANTAGES, StepRewards, max_likelihood, pass_at_k
from manta.algorithms.catalogue import ADVANTAGE_KINDS
from manta.algorithms.group_stage import group_stage
from manta.algorithms.part_settings import DifficultySettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings

GroupLoop = Callable[[AlgorithmSettings, list[float], list[int]], list[float]]
"""The advantages of one group from its rewards and trained tokens."""


def themselves(_: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    return rewards


def grpo(s: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    if len(rewards) == 1:
        return [0.0]
    deviation = float(np.std(rewards, ddof=1))
    return [(r - float(np.mean(rewards))) / (deviation + s.std_epsilon) for r in rewards]


def rloo(_: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    if len(rewards) == 1:
        return [0.0]
    others = [rewards[:i] + rewards[i + 1 :] for i in range(len(rewards))]
    return [r - float(np.mean(rest)) for r, rest in zip(rewards, others, strict=True)]


def opo(_: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    if len(rewards) == 1:
        return [0.0]
    baseline = sum(n * r for n, r in zip(tokens, rewards, strict=True)) / sum(tokens)
    return [r - baseline for r in rewards]


def teams(s: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    """Full enumeration: every team's normalised reward, averaged over the teams of a row."""
    found = [(team, max(rewards[i] for i in team)) for team in combinations(rewards, s.pass_k)]
    if not found:
        return [0.0] * len(rewards)
    values = [value for _, value in found]
    scale = float(np.std(values)) + s.std_epsilon
    advantages = [(team, (value - float(np.mean(values))) / scale) for team, value in found]
    return [
        float(np.mean([advantage for team, advantage in advantages if i in team]))
        for i in range(len(rewards))
    ]


def combinations(rewards: list[float], k: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(len(rewards)), k))


def maxrl(_: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    """The mean score over right rows less the mean over all, as weights times the group's size."""
    n, right = len(rewards), sum(rewards)
    return [n * (r / right - 1 / n) if right else 0.0 for r in rewards]


def wins(s: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    """Half a win for a draw; the mean of a group's win rates is 1/2 whatever the rewards are."""
    if len(rewards) == 1:
        return [0.0]
    rates = []
    for i, mine in enumerate(rewards):
        won = [
            1.0 if mine > r else 0.5 if mine == r else 0.0 for j, r in enumerate(rewards) if j != i
        ]
        rates.append(sum(won) / len(won))
    scale = float(np.std(rates, ddof=1)) + s.std_epsilon if s.divide_by_std else 1.0
    return [(rate - 0.5) / scale for rate in rates]


def lead(s: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    share, told = sum(r > 0.5 for r in rewards) / len(rewards), s.difficulty
    found = []
    for advantage in grpo(s, rewards, tokens):
        expected = share if advantage > 0 else 1 - share
        curve = 1 + math.exp(told.steepness * (expected - told.midpoint))
        found.append(advantage * (told.low + (told.high - told.low) / curve))
    return found


def nothing(_: AlgorithmSettings, rewards: list[float], tokens: list[int]) -> list[float]:
    return [0.0] * len(rewards)


BASE = AlgorithmSettings("x", samples_per_prompt=4, std_epsilon=1e-4)
CASES: dict[str, tuple[AlgorithmSettings, GroupLoop]] = {
    "group_relative": (BASE, grpo),
    "reward": (dataclasses.replace(BASE, advantage="reward"), themselves),
    "gae": (dataclasses.replace(BASE, advantage="gae"), themselves),
    "leave_one_out": (dataclasses.replace(BASE, advantage="leave_one_out"), rloo),
    "length_weighted": (dataclasses.replace(BASE, advantage="length_weighted"), opo),
    "pass_at_k": (dataclasses.replace(BASE, advantage="pass_at_k", pass_k=3), teams),
    "max_likelihood": (dataclasses.replace(BASE, advantage="max_likelihood"), maxrl),
    "win_rate": (dataclasses.replace(BASE, advantage="win_rate", divide_by_std=False), wins),
    "difficulty_weighted": (
        dataclasses.replace(
            BASE, advantage="difficulty_weighted", difficulty=DifficultySettings(0.3, 1.8, 0.6, 4.0)
        ),
        lead,
    ),
    "return_to_go": (dataclasses.replace(BASE, advantage="return_to_go"), themselves),
    "turn_mixed": (dataclasses.replace(BASE, advantage="turn_mixed"), themselves),
    "none": (dataclasses.replace(BASE, advantage="none"), nothing),
}
WHOLE_STEP = {"decoupled", "length_penalized"}
"""Those that look past the group have a test of their own."""
BESIDE = {name for name, kind in ADVANTAGE_KINDS.items() if "none" not in kind.companions}
"""Those that look at a row beside the samples: test_companion."""
COMPARING = [
    name
    for name, kind in ADVANTAGE_KINDS.items()
    # Those that read what is within compare in the token stage
    if kind.needs_group and name not in BESIDE and not kind.reads_within
]


def step(seed: int, is_binary: bool = True) -> StepRewards:
    """A step of 9 interleaved groups of 1 to 7 rows."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(9) * 10 - 3, generator.integers(1, 8, 9))
    generator.shuffle(groups)
    num = len(groups)
    rewards = generator.integers(0, 2, num).astype(float)
    if not is_binary:
        rewards = generator.normal(size=num) ** 2
    parts = {name: torch.from_numpy(generator.normal(size=num)) for name in ("a", "b", "other")}
    return StepRewards(
        torch.from_numpy(rewards),
        torch.from_numpy(groups),
        torch.from_numpy(generator.integers(1, 40, num)),
        parts,
    )


def of(name: str) -> AlgorithmSettings:
    if name in CASES:
        return CASES[name][0]
    return dataclasses.replace(BASE, advantage=name, component_weights={"a": 1.0, "b": 0.5})


def test_every_advantage_has_a_case_and_a_kind() -> None:
    assert {*CASES, *WHOLE_STEP, *BESIDE} == set(ADVANTAGES) == set(ADVANTAGE_KINDS)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("seed", range(6))
def test_advantages_are_those_of_the_formula(name: str, seed: int) -> None:
    settings, loop = CASES[name]
    told = step(seed, is_binary=name == "pass_at_k" or seed % 2 == 0)
    wanted = np.empty(len(told.rewards_N))
    for group in set(told.group_N.tolist()):
        rows = np.flatnonzero(told.group_N.numpy() == group)
        rewards, tokens = told.rewards_N.numpy()[rows], told.num_tokens_N.numpy()[rows]
        wanted[rows] = loop(settings, rewards.tolist(), tokens.tolist())
    found = ADVANTAGES[name](settings, told)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_win_rates_divided_by_their_deviation(seed: int) -> None:
    """As GRPO over a tournament of the group's samples (Pref-GRPO)."""
    settings, told = dataclasses.replace(of("win_rate"), divide_by_std=True), step(seed)
    found = ADVANTAGES["win_rate"](settings, told)
    for group in set(told.group_N.tolist()):
        rows = told.group_N == group
        wanted = wins(settings, told.rewards_N[rows].tolist(), [])
        np.testing.assert_allclose(found[rows].numpy(), wanted, rtol=1e-10, atol=1e-10)


def test_win_rates_look_at_the_order_of_rewards_alone() -> None:
    told = step(4, is_binary=False)
    stretched = told._replace(rewards_N=torch.exp(3 * told.rewards_N) - 7)
    settings = of("win_rate")
    assert torch.equal(
        ADVANTAGES["win_rate"](settings, told), ADVANTAGES["win_rate"](settings, stretched)
    )


@pytest.mark.parametrize("seed", range(4))
def test_decoupled_advantages_are_those_of_the_formula(seed: int) -> None:
    told = step(seed)
    told.components["b"][::5] = math.nan  # a component that was skipped
    total = np.zeros(len(told.rewards_N))
    for part, weight in (("a", 1.0), ("b", 0.5)):
        values = told.components[part].numpy()
        for group in set(told.group_N.tolist()):
            rows = np.flatnonzero((told.group_N.numpy() == group) & ~np.isnan(values))
            if len(rows):
                total[rows] += weight * np.array(grpo(BASE, values[rows].tolist(), []))
    wanted = (total - total.mean()) / (total.std(ddof=1) + BASE.std_epsilon)
    found = ADVANTAGES["decoupled"](of("decoupled"), told)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-10)


def test_decoupled_takes_all_components_where_none_is_named() -> None:
    told = step(1)
    weights = dict.fromkeys(told.components, 1.0)
    named = dataclasses.replace(of("decoupled"), component_weights=weights)
    plain = dataclasses.replace(of("decoupled"), component_weights={})
    assert torch.equal(ADVANTAGES["decoupled"](named, told), ADVANTAGES["decoupled"](plain, told))
    unknown = dataclasses.replace(of("decoupled"), component_weights={"c": 1.0})
    with pytest.raises(ValueError, match=r"names \['c'\], .* components \['a', 'b', 'other'\]"):
        ADVANTAGES["decoupled"](unknown, told)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.34, 1.0])
def test_the_easiest_groups_pay_for_length(share: float, seed: int) -> None:
    settings = dataclasses.replace(
        of("length_penalized"), penalized_share=share, length_penalty=0.6
    )
    told = step(seed, is_binary=seed % 2 == 0)
    groups = {
        group: np.flatnonzero(told.group_N.numpy() == group) for group in told.group_N.tolist()
    }
    rewards, tokens = told.rewards_N.numpy(), told.num_tokens_N.numpy()
    is_right = rewards > 0.5
    by_ease = sorted(groups, key=lambda group: (-is_right[groups[group]].mean(), group))
    easy = by_ease[: math.ceil(share * len(groups))]
    wanted = np.empty(len(rewards))
    for group, rows in groups.items():
        right = [float(n) for n, r in zip(tokens[rows], is_right[rows], strict=True) if r]
        paid = []
        for length, reward in zip(tokens[rows].tolist(), rewards[rows].tolist(), strict=True):
            if reward > 0.5 and group in easy:
                spread = float(np.std(right, ddof=1)) if len(right) > 1 else 0.0
                z = (length - float(np.mean(right))) / (spread + settings.std_epsilon)
                reward -= 0.6 / (1 + math.exp(-z))
            paid.append(reward)
        wanted[rows] = grpo(settings, paid, [])
    found = ADVANTAGES["length_penalized"](settings, told)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-10)


def test_all_right_prompts_learn_to_be_short() -> None:
    """Of ten prompts that are all right two pay, the first ones; the longer sample loses."""
    groups = torch.arange(10).repeat_interleave(2)
    told = StepRewards(torch.ones(20), groups, torch.tensor([3, 9]).repeat(10), {})
    found = ADVANTAGES["length_penalized"](PRESETS["grpo_lambda"], told).view(10, 2)
    assert (found[:2, 0] > 0.7).all() and (found[:2, 1] < -0.7).all()
    assert not found[2:].any()


@pytest.mark.parametrize("name", [name for name in COMPARING if name != "length_penalized"])
def test_equal_rewards_and_groups_of_one_give_exactly_zero(name: str) -> None:
    num = 12
    for reward in (0.0, 1.0) if name == "pass_at_k" else (0.0, 0.1, 1.0, 1e6 + 0.3):
        rewards = torch.full((num,), reward, dtype=torch.float64)
        groups = torch.tensor([0] * 5 + [1] * 6 + [2])
        tokens = torch.arange(1, num + 1)
        settings = dataclasses.replace(of(name), std_epsilon=1e-12)
        told = StepRewards(rewards, groups, tokens, {"a": rewards, "b": rewards / 3})
        assert ADVANTAGES[name](settings, told).tolist() == [0.0] * num


@pytest.mark.parametrize("name", sorted(ADVANTAGES.keys() - BESIDE))
def test_the_order_of_samples_changes_nothing(name: str) -> None:
    told = step(7)
    straight = ADVANTAGES[name](of(name), told)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(straight)))
    permuted = StepRewards(
        *(column[order] for column in told[:3]),
        {part: values[order] for part, values in told.components.items()},
    )
    found = ADVANTAGES[name](of(name), permuted)
    torch.testing.assert_close(found, straight[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in COMPARING if name not in WHOLE_STEP])
def test_a_group_s_advantages_do_not_depend_on_the_others(name: str) -> None:
    told = step(3)
    whole = ADVANTAGES[name](of(name), told)
    rows = told.group_N == told.group_N.mode().values
    alone = StepRewards(*(column[rows] for column in told[:3]), {})
    torch.testing.assert_close(ADVANTAGES[name](of(name), alone), whole[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["group_relative", "leave_one_out", "max_likelihood", "win_rate"])
def test_a_group_s_advantages_cancel(name: str) -> None:
    told = step(5, is_binary=False)
    sums = torch.zeros(9, dtype=torch.float64)
    sums.index_add_(0, (told.group_N + 3) // 10, ADVANTAGES[name](of(name), told))
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-10)


def test_pass_at_one_is_the_normalised_reward() -> None:
    # 2 of 4 right: R = 1/2, sigma = 1/2, so 1 and -1.
    rewards, groups = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    assert pass_at_k(rewards, groups, 1, 0.0).tolist() == [1.0, -1.0, 1.0, -1.0]
    # One of four right, teams of two: R = 1/2, sigma = 1/2; a wrong row's team is right 1 in 3.
    found = pass_at_k(torch.tensor([0.0, 0.0, 1.0, 0.0]), groups, 2, 0.0)
    torch.testing.assert_close(found, torch.tensor([-1 / 3, -1 / 3, 1.0, -1 / 3]).double())


@pytest.mark.parametrize(("num", "p"), [(2, 0.3), (5, 0.15), (8, 0.6)])
def test_max_likelihood_is_the_gradient_of_the_truncated_log(num: int, p: float) -> None:
    """Over every outcome of n draws of a coin: the expected estimate of the gradient by p."""
    expected = 0.0
    for outcome in itertools.product((0.0, 1.0), repeat=num):
        chance = math.prod(p if r else 1 - p for r in outcome)
        scores = [1 / p if r else -1 / (1 - p) for r in outcome]
        advantages = max_likelihood(torch.tensor(outcome), torch.zeros(num, dtype=torch.int64))
        expected += chance * float(np.mean(advantages.numpy() * np.array(scores)))
    # d/dp of -(1 - p)^k / k is (1 - p)^(k - 1), summed for k < n.
    assert expected == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, num)), rel=1e-9)


def test_rewards_that_do_not_fit_are_refused_by_group() -> None:
    rewards, groups = torch.tensor([1.0, 0.5, -1.0]), torch.tensor([4, 9, 7])
    with pytest.raises(ValueError, match=r"groups \[7, 9\] are neither 0 nor 1"):
        group_stage(PRESETS["pass_at_k"], rewards, groups)
    with pytest.raises(ValueError, match=r"groups \[7\] are negative"):
        group_stage(PRESETS["max_rl"], rewards, groups)


def test_a_component_that_no_row_of_a_step_has_is_like_one_that_each_row_lacks() -> None:
    known = step(1)
    weighed = dataclasses.replace(of("decoupled"), component_weights={"a": 1.0, "judge": 0.5})
    absent = torch.full_like(known.rewards_N, math.nan)
    lacking = known._replace(components={**known.components, "judge": absent})
    found, expected = (ADVANTAGES["decoupled"](weighed, each) for each in (known, lacking))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"names \['judge'\], the rewards have the components"):
        other = dataclasses.replace(weighed, component_weights={"judge": 0.5})
        ADVANTAGES["decoupled"](other, known)
