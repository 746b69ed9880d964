"""The implicit process reward model's loss and rewards, against loops as the paper writes them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import Denominators
from manta.algorithms.flatten import flatten
from manta.algorithms.group_stage import group_stage
from manta.algorithms.implicit_reward import (
    NORM_EPSILON,
    outcome_loss,
    process_rewards,
    token_rewards,
)
from manta.algorithms.part_settings import ImplicitRewardSettings, KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.token_stage import token_stage
from manta.algorithms.turns import Places

BETA = 0.3
COUNTS = (3, 1, 4, 2, 5, 2, 3)
GROUPS = (9, 4, 9, 4, 9, 2, 4)
"""Interleaved, and one of a single row."""
LABELS = (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0)
WEIGHTS = (0.2, 0.1, 0.1, 0.2, 0.1, 0.15, 0.15)
SETTINGS = ImplicitRewardSettings(beta=BETA, coef=0.7)


@dataclasses.dataclass
class Said:
    """Log-probs of model and reference for rows of `COUNTS`, as lists by row and flat."""

    model: list[list[float]]
    reference: list[list[float]]

    @staticmethod
    def random(seed: int) -> Said:
        generator = np.random.default_rng(seed)
        columns = [[(-generator.random(count) * 3).tolist() for count in COUNTS] for _ in range(2)]
        return Said(*columns)

    @property
    def rewards(self) -> list[list[float]]:
        pairs = zip(self.model, self.reference, strict=True)
        return [[BETA * (m - r) for m, r in zip(*row, strict=True)] for row in pairs]


def flat(rows: list[list[float]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def tokens_of(places: list[int]) -> Tensor:
    counts = torch.tensor([COUNTS[place] for place in places], dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(places)), counts)


def rows_of(places: list[int]) -> tuple[Tensor, Places]:
    place_R = torch.tensor(places, dtype=torch.int64)
    return tokens_of(places), Places(place_R, torch.tensor(GROUPS))


def alone(values: Tensor) -> Tensor:
    return values


def by_hand(said: Said) -> float:
    loss = 0.0
    for rewards, label, weight in zip(said.rewards, LABELS, WEIGHTS, strict=True):
        chance = 1 / (1 + math.exp(-sum(rewards)))
        loss -= weight * (label * math.log(chance) + (1 - label) * math.log(1 - chance))
    return loss


def loss_of(said: Said, places: list[int], model_T: Tensor) -> Tensor:
    reference_T = flat([said.reference[place] for place in places])
    labels = torch.tensor([LABELS[place] for place in places])
    weights = torch.tensor([WEIGHTS[place] for place in places], dtype=torch.float64)
    reward_T = token_rewards(BETA, model_T, reference_T)
    return outcome_loss(reward_T, tokens_of(places), labels, weights).loss


def test_the_loss_is_the_outcome_s_cross_entropy() -> None:
    said = Said.random(0)
    reward_T = token_rewards(BETA, flat(said.model), flat(said.reference))
    assert reward_T.tolist() == pytest.approx(flat(said.rewards).tolist(), abs=1e-15)
    terms = outcome_loss(
        reward_T,
        tokens_of(list(range(7))),
        torch.tensor(LABELS),
        torch.tensor(WEIGHTS, dtype=torch.float64),
    )
    assert float(terms.loss) == pytest.approx(by_hand(said), abs=1e-14)
    assert terms.sums["process/loss"] == terms.sums["loss"] == terms.loss
    agrees = [
        weight * ((sum(rewards) > 0) == (label > 0))
        for rewards, label, weight in zip(said.rewards, LABELS, WEIGHTS, strict=True)
    ]
    assert 0 < sum(agrees) < 1
    assert float(terms.sums["process/accuracy"]) == pytest.approx(sum(agrees))


def test_its_gradient_is_that_of_finite_differences_and_of_the_formula() -> None:
    """`weight * (sigmoid - label) * beta` at every token of a row."""
    said, places = Said.random(1), list(range(7))
    model_T = flat(said.model).requires_grad_()
    (gradient_T,) = torch.autograd.grad(loss_of(said, places, model_T), model_T)
    expected = [
        weight * (1 / (1 + math.exp(-sum(rewards))) - label) * BETA
        for rewards, label, weight in zip(said.rewards, LABELS, WEIGHTS, strict=True)
        for _ in rewards
    ]
    assert gradient_T.tolist() == pytest.approx(expected, abs=1e-15)
    step, token = 1e-5, 0
    for row in said.model:
        for place in range(len(row)):
            kept, ends = row[place], []
            for sign in (1, -1):
                row[place] = kept + sign * step
                ends.append(by_hand(said))
            row[place] = kept
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(gradient_T[token]) == pytest.approx(slope, abs=1e-10)
            token += 1


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5, 6]], [[6, 0], [5, 1, 3], [2], [4]]])
def test_rows_that_are_dealt_out_give_the_same_gradient(parts: list[list[int]]) -> None:
    said = Said.random(2)
    model_T = flat(said.model).requires_grad_()
    whole = torch.autograd.grad(loss_of(said, list(range(7)), model_T), model_T)[0]
    pieces = list(whole.split(COUNTS))
    for places in parts:
        own_T = flat([said.model[place] for place in places]).requires_grad_()
        (found_T,) = torch.autograd.grad(loss_of(said, places, own_T), own_T)
        wanted_T = torch.cat([pieces[place] for place in places])
        assert (found_T - wanted_T).abs().max() < 1e-15


def test_a_certain_model_s_loss_is_finite() -> None:
    label, weight = torch.ones(1), torch.ones(1, dtype=torch.float64)
    row_T = torch.zeros(1, dtype=torch.int64)
    reward_T = torch.tensor([-1e4], dtype=torch.float64)
    assert float(outcome_loss(reward_T, row_T, label, weight).loss) == pytest.approx(1e4)


def bracket(
    said: Said, coef: float, normalize: bool = False, there: tuple[int, ...] = ()
) -> list[list[float]]:
    """`coef * (r_t - mean of the others' means)` by row, of the rows `there` (none: all)."""
    places, divisor = there or tuple(range(7)), 1.0
    if normalize:
        returns = [abs(sum(said.rewards[p][t:])) for p in places for t in range(COUNTS[p])]
        divisor = max(returns) + NORM_EPSILON
    made = []
    for place in places:
        others = [
            sum(said.rewards[other]) / COUNTS[other]
            for other in places
            if other != place and GROUPS[other] == GROUPS[place]
        ]
        baseline = sum(others) / len(others) if others else math.nan
        made.append(
            [
                coef * (reward - baseline) / divisor if others else 0.0
                for reward in said.rewards[place]
            ]
        )
    return made


@pytest.mark.parametrize("normalize", [False, True])
def test_rewards_are_less_the_mean_of_the_prompt_s_other_rows(normalize: bool) -> None:
    said = Said.random(3)
    settings = dataclasses.replace(SETTINGS, normalize=normalize)
    found = process_rewards(settings, flat(said.rewards), *rows_of(list(range(7))), alone)
    wanted = flat(bracket(said, 0.7, normalize))
    assert (found.reward_T - wanted).abs().max() < 1e-14
    # The single row of its group has nothing to be compared with
    assert found.reward_T[15:17].tolist() == [0.0, 0.0]
    assert found.mean == pytest.approx(float(flat(said.rewards).mean()))


@pytest.mark.parametrize("normalize", [False, True])
def test_rows_on_several_ranks_are_rewarded_the_same(normalize: bool) -> None:
    """Also with a rank that has none, and where rows of the plan are on no rank."""
    said = Said.random(4)
    settings = dataclasses.replace(SETTINGS, normalize=normalize)
    shares = [[6, 2], [], [0, 4, 3]]
    there = tuple(sorted(place for share in shares for place in share))
    rewards = [flat([said.rewards[place] for place in share]) for share in shares]
    told: list[Tensor] = []

    def tell(values: Tensor) -> Tensor:
        told.append(values)
        return values

    for share, reward_T in zip(shares, rewards, strict=True):
        process_rewards(settings, reward_T, *rows_of(share), tell)
    total = torch.stack(told).sum(0)
    wanted = dict(zip(there, bracket(said, 0.7, normalize, there), strict=True))
    means = set()
    for share, reward_T in zip(shares, rewards, strict=True):
        found = process_rewards(settings, reward_T, *rows_of(share), lambda _: total)
        expected = flat([wanted[place] for place in share])
        assert (found.reward_T - expected).abs().sum() < 1e-13
        means.add(found.mean)
    assert len(means) == 1


def test_without_rows_there_is_nothing_to_report() -> None:
    found = process_rewards(SETTINGS, torch.zeros(0, dtype=torch.float64), *rows_of([]), alone)
    assert found.mean is None and len(found.reward_T) == 0


def test_a_model_that_says_the_same_everywhere_changes_no_advantage() -> None:
    reward_T = torch.full((sum(COUNTS),), 0.25, dtype=torch.float64)
    found = process_rewards(SETTINGS, reward_T, *rows_of(list(range(7))), alone)
    assert found.reward_T.abs().max() < 1e-16


def test_the_advantage_is_the_sum_of_both_streams() -> None:
    """PRIME, arXiv 2502.01456, eq. 5, from outcomes and log-probs, with a KL charged besides."""
    said = Said.random(5)
    outcomes = torch.tensor([0.3, 0.0, 1.0, 1.0, 0.0, 1.0, 0.6], dtype=torch.float64)
    kl = KlSettings(0.2, "k1", "reward")
    prime = dataclasses.replace(PRESETS["prime"], implicit_reward=SETTINGS, filters=(), kl=kl)
    stage = group_stage(prime, outcomes, torch.tensor(GROUPS))
    assert stage.coefficients["label"].tolist() == [0, 0, 1, 1, 0, 1, 1]
    found = process_rewards(SETTINGS, flat(said.rewards), *rows_of(list(range(7))), alone)
    coefficients = {name: column.double() for name, column in stage.coefficients.items()}
    batch = flatten(
        prime,
        torch.tensor(COUNTS),
        coefficients,
        Denominators(1.0, 1.0),
        behaviour_T=flat(said.model),
        reference_T=flat(said.reference),
    )
    paid = dataclasses.replace(batch, reward_T=found.reward_T)
    advantage_T = token_stage(prime, paid, alone).advantage_T
    streams, token = bracket(said, 0.7), 0
    for place, count in enumerate(COUNTS):
        others = [outcomes[o] for o in range(7) if GROUPS[o] == GROUPS[place] and o != place]
        outcome = float(outcomes[place] - sum(others) / len(others)) if others else 0.0
        for t in range(count):
            charged = 0.2 * sum(said.rewards[place][t:]) / BETA
            expected = outcome - charged + sum(streams[place][t:])
            # The plan's columns are float32
            assert float(advantage_T[token]) == pytest.approx(expected, abs=1e-7)
            token += 1


def test_labels_are_told_only_where_a_model_learns_from_them() -> None:
    rewards, groups = torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.int64)
    assert "label" not in group_stage(PRESETS["rloo"], rewards, groups).coefficients
    told = ImplicitRewardSettings(outcome_above=-1.0)
    prime = dataclasses.replace(PRESETS["prime"], implicit_reward=told, filters=())
    assert group_stage(prime, rewards, groups).coefficients["label"].tolist() == [1.0, 1.0]
