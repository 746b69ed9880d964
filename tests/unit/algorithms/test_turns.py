"""Advantages from rewards within rows, against plain loops in float64, on any share of the rows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import Denominators
from manta.algorithms.flatten import flatten
from manta.algorithms.part_settings import KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_stage import token_stage
from manta.algorithms.tokens import TokenBatch
from manta.algorithms.turns import Places
from tests.unit.algorithms.rank_threads import on_ranks

MAPO = replace(PRESETS["mapo"], gamma=0.9, turn_weight=0.3)
OVER_STEP = replace(MAPO, mixed_over="step")
TO_GO = replace(PRESETS["reinforce_to_go"], gamma=0.9, whiten_advantages=False)
BY_TURN = replace(TO_GO, credit="turn")
GAE = replace(PRESETS["rto"], gamma=0.9, gae_lambda=0.8, kl=KlSettings(), whiten_advantages=False)


@dataclass
class Row:
    """One of the step's. `turns` are (number, rewards by token) pairs."""

    index: int
    group: int
    outcome: float
    turns: list[tuple[int, list[float]]]
    values: list[float]

    @property
    def paid(self) -> list[tuple[int, list[float]]]:
        """With the outcome on the last token."""
        turns = [(number, list(rewards)) for number, rewards in self.turns]
        if turns:
            turns[-1][1][-1] += self.outcome
        return turns


def step_of(seed: int) -> list[Row]:
    """Groups of 1 to 5 interleaved rows of 0 to 4 turns; some turns are missing (of which no token
    trains any more), and one group's rewards are all alike."""
    draw = np.random.default_rng(seed)
    groups = np.repeat([7, -2, 30, 4], draw.integers(1, 6, 4))
    draw.shuffle(groups)
    rows = []
    for index, group in enumerate(groups.tolist()):
        numbers = [n for n in range(int(draw.integers(0, 5))) if draw.random() < 0.8]
        is_equal = group == 4
        turns = [
            (n, [0.1] * 2 if is_equal else draw.normal(size=int(draw.integers(1, 4))).tolist())
            for n in numbers
        ]
        count = sum(len(rewards) for _, rewards in turns)
        outcome = 0.0 if is_equal else float(draw.normal())
        rows.append(Row(index, group, outcome, turns, draw.normal(size=count).tolist()))
    return rows


def batch_of(settings: AlgorithmSettings, rows: list[Row]) -> TokenBatch:
    turns = [turn for row in rows for turn in row.turns]
    batch = flatten(
        settings,
        torch.tensor([sum(len(r) for _, r in row.turns) for row in rows], dtype=torch.int64),
        {
            "advantage": torch.tensor([row.outcome for row in rows], dtype=torch.float64),
            "keep": torch.ones(len(rows), dtype=torch.float64),
        },
        Denominators(1.0, 1.0),
        value_T=torch.tensor([v for row in rows for v in row.values], dtype=torch.float64),
    )
    return replace(
        batch,
        reward_T=torch.tensor([x for _, rewards in turns for x in rewards], dtype=torch.float64),
        turn_T=torch.tensor([n for n, rewards in turns for _ in rewards], dtype=torch.int64),
    )


def staged(
    settings: AlgorithmSettings, rows: list[Row], step: list[Row], all_reduce: AllReduce
) -> list[Tensor]:
    """The advantages of each of `rows`, which are of `step`."""
    places = Places(
        torch.tensor([row.index for row in rows], dtype=torch.int64),
        torch.tensor([row.group for row in step], dtype=torch.int64),
    )
    batch = token_stage(settings, batch_of(settings, rows), all_reduce, places=places)
    counts = [sum(len(r) for _, r in row.turns) for row in rows]
    return list(batch.advantage_T.split(counts))


def alone(settings: AlgorithmSettings, rows: list[Row]) -> list[float]:
    return torch.cat(staged(settings, rows, rows, lambda part: part)).tolist()


def returns(rewards: list[float], gamma: float) -> list[float]:
    return [
        sum(gamma ** (s - t) * rewards[s] for s in range(t, len(rewards)))
        for t in range(len(rewards))
    ]


def to_go(settings: AlgorithmSettings, rows: list[Row]) -> list[float]:
    flat = [[x for _, rewards in row.paid for x in rewards] for row in rows]
    return [x for rewards in flat for x in returns(rewards, settings.gamma)]


def by_turn(settings: AlgorithmSettings, rows: list[Row]) -> list[float]:
    wanted = []
    for row in rows:
        found = returns([sum(rewards) for _, rewards in row.paid], settings.gamma)
        for (_, rewards), value in zip(row.paid, found, strict=True):
            wanted += [value] * len(rewards)
    return wanted


def gae(settings: AlgorithmSettings, rows: list[Row]) -> list[float]:
    wanted = []
    for row in rows:
        rewards = [x for _, of_turn in row.paid for x in of_turn]
        last, following, backward = 0.0, 0.0, []
        for reward, value in zip(reversed(rewards), reversed(row.values), strict=True):
            last = reward + settings.gamma * following - value + 0.9 * 0.8 * last
            following = value
            backward.append(last)
        wanted += reversed(backward)
    return wanted


def mapo(settings: AlgorithmSettings, rows: list[Row]) -> list[float]:
    """Dictionaries of all that a turn is compared with, then one turn after the other."""
    of_turn: dict[tuple[int, int], list[float]] = {}
    of_all: dict[int, list[float]] = {}
    found: list[tuple[Row, int, int, float, float]] = []
    for row in rows:
        sums = [sum(rewards) for _, rewards in row.paid]
        group = 0 if settings.mixed_over == "step" else row.group
        for (number, rewards), own, later in zip(
            row.paid, sums, returns(sums, settings.gamma), strict=True
        ):
            of_turn.setdefault((row.group, number), []).append(later)
            of_all.setdefault(group, []).append(own)
            found.append((row, number, len(rewards), own, later))
    wanted = []
    for row, number, count, own, later in found:
        group = 0 if settings.mixed_over == "step" else row.group
        turn = normed(later, of_turn[row.group, number], settings.std_epsilon)
        batch = normed(own, of_all[group], settings.std_epsilon)
        wanted += [settings.turn_weight * turn + (1 - settings.turn_weight) * batch] * count
    return wanted


def normed(value: float, among: list[float], epsilon: float) -> float:
    if len(among) < 2:
        return 0.0
    return (value - statistics.fmean(among)) / (statistics.stdev(among) + epsilon)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("settings", "loop"),
    [(TO_GO, to_go), (BY_TURN, by_turn), (GAE, gae), (MAPO, mapo), (OVER_STEP, mapo)],
    ids=["token", "turn", "gae", "mapo", "mapo over the step"],
)
def test_advantages_are_those_of_the_loops(
    settings: AlgorithmSettings, loop: object, seed: int
) -> None:
    rows = step_of(seed)
    assert callable(loop)
    np.testing.assert_allclose(alone(settings, rows), loop(settings, rows), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
    "settings", [TO_GO, BY_TURN, GAE, MAPO, OVER_STEP], ids=lambda s: f"{s.advantage} {s.credit}"
)
def test_any_share_of_the_rows_gives_the_same_to_the_bit(
    settings: AlgorithmSettings, size: int
) -> None:
    """Groups lie across ranks, one of which has no row at all."""
    step = step_of(3)
    wanted = staged(settings, step, step, lambda part: part)
    draw = np.random.default_rng(size)
    owner = draw.integers(0, max(1, size - 1), len(step))
    shares = [[row for row in reversed(step) if owner[row.index] == rank] for rank in range(size)]
    found = on_ranks(shares, lambda rows, total: staged(settings, rows, step, total))
    for rows, advantages in zip(shares, found, strict=True):
        for row, advantage_T in zip(rows, advantages, strict=True):
            assert torch.equal(advantage_T, wanted[row.index])


def test_mapo_by_hand() -> None:
    """Two samples of two turns: returns (3, 2) and (1, -2), own rewards 1, 2, 3, -2."""
    settings = replace(PRESETS["mapo"], std_epsilon=1e-9)
    rows = [Row(0, 0, 0.0, [(0, [1.0]), (1, [2.0])], [0.0] * 2)]
    rows.append(Row(1, 0, -2.0, [(0, [0.0, 3.0]), (1, [0.0])], [0.0] * 3))
    half, std = 0.5**0.5, statistics.stdev([1.0, 2.0, 3.0, -2.0])
    wanted = [
        0.5 * half + 0.5 * (1 - 1) / std,
        0.5 * half + 0.5 * (2 - 1) / std,
        -0.5 * half + 0.5 * (3 - 1) / std,
        -0.5 * half + 0.5 * (3 - 1) / std,
        -0.5 * half + 0.5 * (-2 - 1) / std,
    ]
    assert alone(settings, rows) == pytest.approx(wanted, abs=1e-8)


def test_turns_that_are_all_alike_or_alone_say_nothing() -> None:
    alike = [Row(i, 0, 0.0, [(0, [0.25, 0.5]), (1, [0.75])], [0.0] * 3) for i in range(3)]
    assert alone(MAPO, alike) == [0.0] * 9
    assert alone(MAPO, [Row(0, 0, 5.0, [(0, [1.0])], [0.0])]) == [0.0]
    assert alone(MAPO, [Row(0, 0, 5.0, [], [])]) == []


def test_without_rewards_within_a_token_s_return_is_its_row_s_reward() -> None:
    rows = step_of(5)
    batch = replace(batch_of(TO_GO, rows), reward_T=None)
    found = token_stage(replace(TO_GO, gamma=1.0), batch, lambda part: part).advantage_T
    torch.testing.assert_close(found, batch.coefficients_R["advantage"][batch.row_T])


def test_the_kl_is_charged_beside_the_returns() -> None:
    rows = step_of(2)
    settings = replace(TO_GO, kl=KlSettings(0.5, "k1", "reward", 0.7))
    batch = batch_of(settings, rows)
    draw = torch.Generator().manual_seed(0)
    behaviour_T, reference_T = torch.randn(2, len(batch.row_T), generator=draw).double()
    batch = replace(batch, behaviour_T=behaviour_T, reference_T=reference_T)
    found = token_stage(settings, batch, lambda part: part).advantage_T
    wanted = torch.tensor(to_go(settings, rows), dtype=torch.float64)
    kl_T = behaviour_T - reference_T
    for t in range(len(kl_T)):
        for s in range(t, len(kl_T)):
            if batch.row_T[s] == batch.row_T[t]:
                wanted[t] -= 0.5 * 0.7 ** (s - t) * kl_T[s]
    torch.testing.assert_close(found, wanted)


def test_turns_that_are_not_known_are_refused() -> None:
    batch = batch_of(MAPO, step_of(1))
    with pytest.raises(ValueError, match="turn_mixed compares rows, and where they stand"):
        token_stage(MAPO, batch, lambda part: part)
    for settings in (MAPO, BY_TURN):
        with pytest.raises(ValueError, match="is by turn, and tokens' turns are unknown"):
            token_stage(settings, replace(batch, turn_T=None), lambda part: part)
