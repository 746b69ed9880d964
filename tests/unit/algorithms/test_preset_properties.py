"""What must hold for every preset that weighs log-probs by advantages, from rewards to gradients.

Group stage, token stage on ranks and objective on micro-batches, over a table of logits. What a
loss or an advantage computes is `test_loss_family`'s and `test_advantage_family`'s.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import Denominators
from manta.algorithms.catalogue import ADVANTAGE_KINDS, LOSS_KINDS
from manta.algorithms.flatten import flatten
from manta.algorithms.group_stage import group_stage
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_choice import tickets
from manta.algorithms.token_stage import token_stage
from manta.algorithms.tokens import TokenBatch
from tests.unit.algorithms.ragged import WORDS, Rows
from tests.unit.algorithms.rank_threads import on_ranks

# Rewards by turn are `test_turns`'.
BY_ADVANTAGE = [
    name
    for name, preset in PRESETS.items()
    if LOSS_KINDS[preset.loss].uses_advantages and not preset.reads_turns
]
COMPARING = [
    name
    for name in BY_ADVANTAGE
    if ADVANTAGE_KINDS[PRESETS[name].advantage].needs_group or PRESETS[name].companion != "none"
]
COUNTS = [4, 2, 6, 3, 5, 1, 0, 3, 4, 2, 6, 3]
GROUPS = [0, 1, 0, 1, 0, 2, 0, 2, 2, 1, 2, 1]
REWARDS = [1.0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1]
BESIDE = [4, 9, 8]
"""The row of each group that stands beside its samples, where a preset has one."""
ALL = list(range(len(COUNTS)))

Deal = Sequence[Sequence[Sequence[int]]]
"""Rows by rank and micro-batch."""


def chosen(name: str) -> AlgorithmSettings:
    """The preset, in what depends on the size of a step fitted to one of 39 tokens."""
    preset = PRESETS[name]
    covariance = dataclasses.replace(preset.covariance, share=0.2, low=0.01, high=9.0)
    return dataclasses.replace(
        preset,
        covariance=covariance,
        pass_k=min(2, preset.pass_k),
        constant_length=min(7, preset.constant_length),
    )


def of_rewards(preset: AlgorithmSettings) -> AlgorithmSettings:
    """What rewards alone teach."""
    return dataclasses.replace(preset, kl=KlSettings(), entropy_coef=0.0)


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step has made: the policy's gradient by the logits [T, WORDS], and by token what it
    was made of, the weight [T] included."""

    gradient_TV: Tensor
    advantage_T: Tensor
    weight_T: Tensor
    selected_T: Tensor


def step_of(
    settings: AlgorithmSettings,
    rows: Rows,
    rewards: Sequence[float],
    deal: Deal = (((*ALL,),),),
    order: Sequence[int] = ALL,
    dropped: int | None = None,
) -> Step:
    """A step whose rows come in `order`; of group `dropped` none is kept. A row is known by its
    place in GROUPS, however it comes."""
    place = torch.tensor(order)
    groups_N = torch.tensor(GROUPS)[place]
    rewards_N = torch.tensor(rewards, dtype=torch.float64)[place]
    tokens_N = rows.counts_R[place]
    beside_N = torch.isin(place, torch.tensor(BESIDE)) if settings.companion != "none" else None
    stage = group_stage(
        settings, rewards_N, groups_N, None, tokens_N, {"right": rewards_N}, beside_N
    )
    back = torch.argsort(place)
    columns = {name: column[back].double() for name, column in stage.coefficients.items()}
    if dropped is not None:
        columns["keep"] = columns["keep"] * (torch.tensor(GROUPS) != dropped)
    told = dataclasses.replace(rows, columns=columns)
    making = Making(settings, told, told.update)
    num = len(rows.tokens_T)
    whole = Step(
        torch.full((num, WORDS), torch.nan, dtype=torch.float64),
        torch.full((num,), torch.nan, dtype=torch.float64),
        torch.full((num,), torch.nan, dtype=torch.float64),
        torch.zeros(num, dtype=torch.bool),
    )
    for at, made in (each for rank in on_ranks(deal, making.on_rank) for each in rank):
        for field in dataclasses.fields(Step):
            getattr(whole, field.name)[at] = getattr(made, field.name)
    return whole


@dataclasses.dataclass(frozen=True)
class Making:
    """How a step is made of rows with their coefficients."""

    settings: AlgorithmSettings
    rows: Rows
    update: Denominators

    def on_rank(
        self, batches: Sequence[Sequence[int]], total: AllReduce
    ) -> list[tuple[list[int], Step]]:
        """What each micro-batch of a rank makes, and of which tokens."""
        mine = [row for batch in batches for row in batch]
        rows_R = torch.tensor(mine, dtype=torch.int64)
        drawn_T = tickets(3, 8, rows_R, self.rows.counts_R[rows_R])
        staged = token_stage(self.settings, self._batch(mine), total, drawn_T)
        at = self._tokens(mine)
        found = []
        for batch in batches:
            here = self._tokens(batch)
            of_mine = torch.tensor([at.index(t) for t in here], dtype=torch.int64)
            cut = dataclasses.replace(
                self._batch(batch),
                **{
                    name: None if column is None else column[of_mine]
                    for name in ("advantage_T", "return_T", "selected_T")
                    for column in [getattr(staged, name)]
                },
            )
            found.append((here, self._made(batch, cut)))
        return found

    def _made(self, part: Sequence[int], batch: TokenBatch) -> Step:
        rows = self.rows.take(list(part))
        logits_TV = rows.logits_TV.clone().requires_grad_()
        stats = dataclasses.replace(rows, logits_TV=logits_TV).statistics()
        stats["value"] = rows.tokens_T / 3
        loss = Objective(self.settings).loss(batch, stats).loss
        (gradient,) = torch.autograd.grad(loss, logits_TV)
        none_T = torch.zeros_like(batch.row_T, dtype=torch.bool)
        selected_T = none_T if batch.selected_T is None else batch.selected_T
        return Step(gradient, batch.advantage_T, batch.weight_T, selected_T)

    def _batch(self, part: Sequence[int]) -> TokenBatch:
        rows = self.rows.take(list(part))
        has_moved = not torch.equal(rows.proximal_T, rows.statistics()["logprob"])
        before = 0.7 if has_moved else 1.0
        return flatten(
            self.settings,
            rows.counts_R,
            rows.columns,
            self.update,
            rows.behaviour_T,
            rows.proximal_T if self.settings.proximal == "learner" else None,
            rows.reference_T,
            value_T=rows.tokens_T / 4,
            vocabulary_T=(before * rows.logits_TV).log_softmax(-1).mean(-1),
        )

    def _tokens(self, part: Sequence[int]) -> list[int]:
        starts = np.cumsum([0, *COUNTS])
        return [t for row in part for t in range(starts[row], starts[row + 1])]


def reinforce(rows: Rows, step: Step) -> Tensor:
    """`-weight * A * d logprob / d logits`, without what was chosen, [T, WORDS]."""
    one_hot_TV = torch.nn.functional.one_hot(rows.tokens_T, WORDS)
    score_TV = one_hot_TV - rows.logits_TV.softmax(-1)
    return -(step.weight_T * step.advantage_T)[:, None] * score_TV


def on_policy(rows: Rows) -> Rows:
    now_T = rows.statistics()["logprob"]
    return dataclasses.replace(rows, behaviour_T=now_T, proximal_T=now_T.clone())


@pytest.mark.parametrize("name", COMPARING)
def test_equal_rewards_teach_nothing(name: str) -> None:
    preset = dataclasses.replace(of_rewards(chosen(name)), filters=())
    rows = Rows.random(COUNTS, seed=1)
    if preset.loss in ("kl_cov", "rover"):  # pull at what has moved, whatever the rewards are
        rows = on_policy(rows)
    # Where all are right the shorter ones are better
    for reward in (0.0,) if preset.advantage == "length_penalized" else (0.0, 1.0):
        found = step_of(preset, rows, [reward] * len(COUNTS))
        assert found.gradient_TV.abs().max() < 1e-15
    assert step_of(preset, rows, REWARDS).gradient_TV.abs().max() > 1e-4


@pytest.mark.parametrize("name", BY_ADVANTAGE)
def test_the_order_of_samples_changes_nothing(name: str) -> None:
    rows = Rows.random(COUNTS, seed=2)
    straight = step_of(chosen(name), rows, REWARDS)
    order = np.random.default_rng(2).permutation(len(COUNTS)).tolist()
    permuted = step_of(chosen(name), rows, REWARDS, [[order]], order)
    torch.testing.assert_close(permuted.gradient_TV, straight.gradient_TV, rtol=1e-6, atol=1e-10)
    assert torch.equal(permuted.selected_T, straight.selected_T)
    assert straight.gradient_TV.abs().max() > 1e-4


@pytest.mark.parametrize("name", BY_ADVANTAGE)
def test_what_is_masked_is_as_if_it_had_not_been_there(name: str) -> None:
    """A group that is not kept, with log-probs of any size; groups without it, in their places."""
    settings = dataclasses.replace(chosen(name), filters=())
    rows = Rows.random(COUNTS, seed=3)
    masked_T = torch.tensor(GROUPS).repeat_interleave(rows.counts_R) == 1
    expected = step_of(settings, rows, REWARDS, dropped=1)
    for column_T in (rows.behaviour_T, rows.proximal_T, rows.reference_T):
        column_T[masked_T] = -torch.inf
    found = step_of(settings, rows, REWARDS, dropped=1)
    assert torch.equal(found.gradient_TV, expected.gradient_TV)
    assert not found.gradient_TV[masked_T].any() and not found.selected_T[masked_T].any()
    assert found.gradient_TV[~masked_T].abs().max() > 1e-4
    kept = [row for row in ALL if GROUPS[row] != 1]
    alone = step_of(settings, rows, REWARDS, [[kept]], dropped=1)
    torch.testing.assert_close(alone.gradient_TV[~masked_T], found.gradient_TV[~masked_T])


@pytest.mark.parametrize("name", BY_ADVANTAGE)
def test_at_ratio_one_the_gradient_is_the_on_policy_one(name: str) -> None:
    """With a KL in the reward, which is part of the advantage, and without one in the loss."""
    settings = dataclasses.replace(chosen(name), entropy_coef=0.0)
    if settings.kl.placement == "loss":
        settings = of_rewards(settings)
    rows = on_policy(Rows.random(COUNTS, seed=4))
    found = step_of(settings, rows, REWARDS)
    wanted_TV = reinforce(rows, found)
    if settings.loss == "clip_cov":
        wanted_TV[found.selected_T] = 0.0
    if settings.loss == "rover":  # a square
        wanted_TV *= 2 * settings.rho
    torch.testing.assert_close(found.gradient_TV, wanted_TV, rtol=1e-6, atol=1e-9)
    assert found.selected_T.any() == settings.chooses_tokens
    assert wanted_TV.abs().max() > 1e-4


@pytest.mark.parametrize("name", BY_ADVANTAGE)
def test_neither_ranks_nor_micro_batches_change_anything(name: str) -> None:
    rows = Rows.random(COUNTS, seed=5)
    whole = step_of(chosen(name), rows, REWARDS)
    generator = np.random.default_rng(5)
    for num_ranks in (1, 2, 3):
        order = generator.permutation(len(COUNTS)).tolist()
        cuts = np.sort(generator.integers(0, len(COUNTS) + 1, 3 * num_ranks - 1)).tolist()
        bounds = [0, *cuts, len(COUNTS)]
        parts = [order[a:b] for a, b in itertools.pairwise(bounds)]
        deal = [parts[3 * rank : 3 * rank + 3] for rank in range(num_ranks)]
        split = step_of(chosen(name), rows, REWARDS, deal)
        torch.testing.assert_close(split.gradient_TV, whole.gradient_TV, rtol=1e-6, atol=1e-10)
        assert torch.equal(split.selected_T, whole.selected_T)
    assert whole.selected_T.any() == chosen(name).chooses_tokens
    assert whole.gradient_TV.isfinite().all()
