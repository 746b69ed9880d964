"""Every loss that couples rows against its formula in plain loops, and what holds for all of them.

A new loss adds a line to CASES. Rows are ragged, in groups of different sizes, some left out; the
gradient is by their tokens' log-probs, held against finite differences of the loop.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as of_search
from hypothesis import strategies as st
from torch import Tensor

from manta.algorithms.coupled import Coupling, Scalars, Units, couple, row_scalars
from manta.algorithms.coupled_losses import LOSSES, Members, margin_weight
from manta.algorithms.group_stage import group_stage
from manta.algorithms.part_settings import MarginWeightSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import COUPLED_LOSSES, AlgorithmSettings

COUNTS = [5, 2, 0, 7, 1, 3, 4, 6, 2, 9]
"""Trained tokens of rows; one that has none cannot be learnt from."""
GROUPS = [0, 0, 0, 0, 3, 3, 5, 5, 5, 8]
REWARDS = [1.0, 0.0, 1.0, 0.25, 0.0, 1.0, 0.75, 0.75, 0.0, 1.0]
MARGINS = [1.0, 0.0, 0.0, 0.0, 0.0, -0.3, 2.5, 0.0, 0.0, 0.0]
"""Of the pairs in which a row is the preferred one."""
BESIDE = [3, 5, 7, 9]
"""Rows that are companions, of losses that compare with them: one of each group."""
IS_GOOD = [reward > 0.5 for reward in REWARDS]


class Answer(NamedTuple):
    """A row: what the policy's and the reference's log-probs of its tokens are, in sum."""

    logprob: float
    reference: float
    tokens: int
    margin: float = 0.0
    """Of the pair in which it is the preferred one."""
    is_beside: bool = False


PairLoop = Callable[[AlgorithmSettings, Answer, Answer], float]


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_ratio(s: AlgorithmSettings, row: Answer) -> float:
    return (row.logprob - row.reference) / (row.tokens if s.length_normalized else 1)


def dpo_pair(s: AlgorithmSettings, won: Answer, lost: Answer) -> float:
    return softplus(-s.beta * (log_ratio(s, won) - log_ratio(s, lost)))


def madpo_pair(s: AlgorithmSettings, won: Answer, lost: Answer) -> float:
    assert s.margin_weight is not None
    return margin_weight_by_hand(s.margin_weight, won.margin) * dpo_pair(s, won, lost)


def margin_weight_by_hand(told: MarginWeightSettings, margin: float) -> float:
    if margin <= -told.threshold:
        return 1.0
    curve = (told.high - 1) / (1 - told.low)
    curve *= math.exp(told.steepness * (abs(margin) - told.threshold))
    factor = told.low + (told.high - told.low) / (1 + curve)
    return math.exp(softplus(-margin) - softplus(-factor * margin))


def xpo_pair(s: AlgorithmSettings, won: Answer, lost: Answer) -> float:
    assert won.is_beside != lost.is_beside
    bonus = won.logprob if won.is_beside else lost.logprob
    return dpo_pair(s, won, lost) + s.exploration_coef * bonus


def ipo_pair(s: AlgorithmSettings, won: Answer, lost: Answer) -> float:
    return float((log_ratio(s, won) - log_ratio(s, lost) - 0.5 / s.beta) ** 2)


def simpo_pair(s: AlgorithmSettings, won: Answer, lost: Answer) -> float:
    ahead = s.beta / won.tokens * won.logprob - s.beta / lost.tokens * lost.logprob
    return softplus(s.target_margin - ahead)


def score_pair(_: AlgorithmSettings, won: Answer, lost: Answer) -> float:
    return softplus(lost.logprob - won.logprob)


def preset(name: str, **changes: object) -> AlgorithmSettings:
    return dataclasses.replace(PRESETS[name], **changes)  # type: ignore[arg-type]


PAIR_CASES: dict[str, tuple[AlgorithmSettings, PairLoop]] = {
    "dpo": (preset("dpo", beta=0.3), dpo_pair),
    "dpo, all pairs by prompt": (preset("dpo", pairs="all", unit="group"), dpo_pair),
    "dpo, by token": (preset("dpo", beta=5.0, length_normalized=True), dpo_pair),
    "online_dpo, far apart": (preset("online_dpo", pairs="all", pair_margin=0.7), dpo_pair),
    "madpo": (
        preset("madpo", margin_weight=MarginWeightSettings(0.4, 3.0, 0.5, 1.3)),
        madpo_pair,
    ),
    "xpo": (preset("xpo", beta=0.3, exploration_coef=0.2), xpo_pair),
    "xpo, by prompt": (preset("xpo", unit="group", exploration_coef=0.7), xpo_pair),
    "dpo, beside": (preset("online_dpo", pairs="companion", companion="written"), dpo_pair),
    "ipo": (preset("ipo", pairs="all"), ipo_pair),
    "ipo, sums": (preset("ipo", length_normalized=False), ipo_pair),
    "simpo": (preset("simpo", pairs="all"), simpo_pair),
    "bradley_terry": (preset("reward_model"), score_pair),
}
LABEL_CASES = {
    "kto, other class": preset("kto", beta=0.4),
    "kto, samples": preset(
        "kto", samples_from="policy", reference_point="samples", undesirable_weight=1.7
    ),
    "kto, zero": preset("kto", reference_point="zero", desirable_weight=0.6, beta=0.7),
}
GROUP_CASES = {
    "pacs": preset("pacs", beta=0.7),
    "pacs, as many as there are": preset("pacs", balance_classes=False, desirable_above=0.2),
}
CASES = {**{name: case for name, (case, _) in PAIR_CASES.items()}, **LABEL_CASES, **GROUP_CASES}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokens' log-probs under both policies, float64[T], and what the group stage made of them.
    Rows have any names, in no order."""

    logprob_T: Tensor
    reference_T: Tensor
    units: Units
    names_R: Tensor

    @staticmethod
    def of(settings: AlgorithmSettings, seed: int = 0) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        logprob_T, noise_T = torch.randn(2, sum(COUNTS), generator=generator, dtype=torch.float64)
        names_R = torch.randperm(40, generator=generator)[: len(COUNTS)]
        is_beside_R = torch.isin(torch.arange(len(COUNTS)), torch.tensor(BESIDE))
        stage = group_stage(
            settings,
            torch.tensor(REWARDS),
            torch.tensor(GROUPS),
            torch.tensor(COUNTS) > 0,
            is_companion_N=is_beside_R if settings.pairs == "companion" else None,
        )
        if stage.pairs is not None:
            members = torch.stack(stage.pairs, dim=1)
            labels, count = torch.tensor([1.0, 0.0]).repeat(len(members)), len(members)
            unit_M = torch.arange(count).repeat_interleave(2)
        else:
            (members,) = torch.where(stage.coefficients["keep"] > 0)
            labels, unit_M = stage.coefficients["label"][members], torch.arange(len(members))
            if settings.unit == "group":
                _, unit_M = torch.unique(torch.tensor(GROUPS)[members], return_inverse=True)
            count = int(unit_M.max()) + 1
        weight_U = torch.full((count,), 1 / count, dtype=torch.float64)
        if stage.pairs is not None and settings.unit == "group":
            group_U = torch.tensor(GROUPS)[members[:, 0]]
            sizes = torch.bincount(group_U)
            weight_U = 1 / (sizes[group_U].double() * int((sizes > 0).sum()))
        units = Units(
            row_M=names_R[members.flatten()],
            unit_M=unit_M,
            label_M=labels.double(),
            margin_U=margins_of(settings, members, count),
            weight_U=weight_U,
            is_companion_M=is_beside_R[members.flatten()],
        )
        return Rows(logprob_T, logprob_T + 0.6 * noise_T - 0.2, units, names_R)

    @property
    def bounds(self) -> list[int]:
        return [0, *np.cumsum(COUNTS).tolist()]

    def answers(self, logprob_T: np.ndarray) -> list[Answer]:
        reference_T, bounds = self.reference_T.numpy(), self.bounds
        return [
            Answer(
                float(logprob_T[a:b].sum()),
                float(reference_T[a:b].sum()),
                b - a,
                MARGINS[row],
                row in BESIDE,
            )
            for row, (a, b) in enumerate(itertools.pairwise(bounds))
        ]

    def scalars(self, logprob_T: Tensor, places: list[int]) -> tuple[Scalars, list[int]]:
        """Of the rows at `places`, and their tokens' places."""
        bounds = self.bounds
        tokens = [t for row in places for t in range(bounds[row], bounds[row + 1])]
        counts = torch.tensor([COUNTS[row] for row in places], dtype=torch.int64)
        return row_scalars(logprob_T[tokens], self.reference_T[tokens], counts), tokens


def margins_of(settings: AlgorithmSettings, members: Tensor, count: int) -> Tensor:
    if settings.margin_weight is None:
        return torch.zeros(count, dtype=torch.float64)
    return torch.tensor(MARGINS, dtype=torch.float64)[members[:, 0]]


def by_loop(name: str, rows: Rows, logprob_T: np.ndarray) -> float:
    """The formula over the units that the rewards make, by loops over groups and samples. KTO's
    reference points are those of the rows' own log-probs: they are held where these are varied."""
    answers = rows.answers(logprob_T)
    if name in LABEL_CASES:
        held = reference_points(LABEL_CASES[name], rows.answers(rows.logprob_T.numpy()))
        return labels_by_loop(LABEL_CASES[name], answers, held)
    if name in GROUP_CASES:
        return questions_by_loop(GROUP_CASES[name], answers)
    settings, pair_loss = PAIR_CASES[name]
    by_group: dict[int, list[float]] = {}
    for group in sorted(set(GROUPS)):
        members = [r for r, g in enumerate(GROUPS) if g == group and COUNTS[r]]
        pairs = [
            (i, j)
            for i in members
            for j in members
            if REWARDS[i] > REWARDS[j] and REWARDS[i] - REWARDS[j] >= settings.pair_margin
            if settings.pairs != "companion" or (i in BESIDE) != (j in BESIDE)
        ]
        if pairs and settings.pairs == "best_worst":
            best = max(members, key=lambda r: REWARDS[r])
            pairs = [(best, min(members, key=lambda r: REWARDS[r]))]
        losses = [pair_loss(settings, answers[i], answers[j]) for i, j in pairs]
        if losses:
            by_group[group] = losses
    if settings.unit == "group":
        return float(np.mean([np.mean(losses) for losses in by_group.values()]))
    return float(np.mean([loss for losses in by_group.values() for loss in losses]))


def labels_by_loop(
    settings: AlgorithmSettings, answers: list[Answer], points: dict[bool, float]
) -> float:
    losses = []
    for answer, good in zip(answers, IS_GOOD, strict=True):
        if not answer.tokens:
            continue
        ahead = (log_ratio(settings, answer) - points[good]) * (1 if good else -1)
        weight = settings.desirable_weight if good else settings.undesirable_weight
        losses.append(weight * (1 - 1 / (1 + math.exp(-settings.beta * ahead))))
    return float(np.mean(losses))


def questions_by_loop(settings: AlgorithmSettings, answers: list[Answer]) -> float:
    means = []
    for members in groups_that_train():
        proxies = {i: settings.beta * (answers[i].logprob - answers[i].reference) for i in members}
        is_right = {i: REWARDS[i] > settings.desirable_above for i in members}
        losses = []
        for i in members:
            others = [proxies[j] for j in members if j != i]
            psi = proxies[i] - sum(others) / len(others) if others else 0.0
            probability = 1 / (1 + math.exp(-psi))
            loss = -math.log(probability if is_right[i] else 1 - probability)
            weight = 1.0
            if settings.balance_classes and len(set(is_right.values())) == 2:
                weight = len(members) / (2 * sum(is_right[j] == is_right[i] for j in members))
            losses.append(weight * loss)
        means.append(sum(losses) / len(losses))
    return sum(means) / len(means)


def groups_that_train() -> list[list[int]]:
    rows = [[r for r, g in enumerate(GROUPS) if g == group and COUNTS[r]] for group in set(GROUPS)]
    return [members for members in rows if members]


def reference_points(settings: AlgorithmSettings, answers: list[Answer]) -> dict[bool, float]:
    """KTO's, of desirable rows and of others."""
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for answer, good in zip(answers, IS_GOOD, strict=True):
        if answer.tokens:
            ratios[good].append(answer.logprob - answer.reference)
    of = {
        "zero": lambda good: [0.0],
        "samples": lambda good: ratios[True] + ratios[False],
        "other_class": lambda good: ratios[not good],
    }[settings.reference_point]
    return {good: max(0.0, float(np.mean(of(good)))) for good in (True, False)}


def direct(settings: AlgorithmSettings, rows: Rows) -> tuple[float, Tensor]:
    """Loss and gradient by the tokens' log-probs: autograd through the loss itself."""
    logprob_T = rows.logprob_T.clone().requires_grad_()
    spans = list(itertools.pairwise(rows.bounds))
    place_M = [rows.names_R.tolist().index(name) for name in rows.units.row_M.tolist()]
    members = Members(
        torch.stack([logprob_T[slice(*spans[place])].sum() for place in place_M]),
        torch.stack([rows.reference_T[slice(*spans[place])].sum() for place in place_M]),
        torch.tensor([COUNTS[place] for place in place_M], dtype=torch.float64),
        rows.units.label_M,
        rows.units.unit_M,
        rows.units.margin_U,
        rows.units.is_companion_M,
    )
    loss = (rows.units.weight_U * LOSSES[settings.loss].loss(settings, members).loss_U).sum()
    (gradient_T,) = torch.autograd.grad(loss, logprob_T)
    return float(loss.detach()), gradient_T


def in_parts(
    settings: AlgorithmSettings, rows: Rows, parts: list[list[int]]
) -> tuple[float, Tensor]:
    """The same as it is learnt, where rows are dealt to micro-batches, which split units: the
    coefficients are those of all rows' scalars, the backward passes each micro-batch's own."""
    everything = list(range(len(COUNTS)))
    scalars, _ = rows.scalars(rows.logprob_T, everything)
    coupling = couple(settings, rows.units, rows.names_R, scalars)
    value, gradient_T = 0.0, torch.zeros_like(rows.logprob_T)
    for part in parts:
        _, tokens = rows.scalars(rows.logprob_T, part)
        own_T = rows.logprob_T[tokens].clone().requires_grad_()
        counts = torch.tensor([COUNTS[row] for row in part], dtype=torch.int64)
        row_T = torch.repeat_interleave(torch.arange(len(part)), counts)
        terms = coupling.at(torch.tensor(part, dtype=torch.int64)).terms(own_T, row_T)
        value += float(terms.loss.detach())
        (gradient_T[tokens],) = torch.autograd.grad(terms.loss, own_T)
    return value, gradient_T


def test_every_loss_has_a_case() -> None:
    assert {settings.loss for settings in CASES.values()} == set(LOSSES) == set(COUPLED_LOSSES)


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_those_of_the_formula(name: str, seed: int) -> None:
    rows = Rows.of(CASES[name], seed)
    now_T = rows.logprob_T.numpy()
    value, gradient_T = direct(CASES[name], rows)
    assert value == pytest.approx(by_loop(name, rows, now_T), rel=1e-12)
    wanted, step = np.zeros_like(now_T), 1e-6
    for t in range(len(now_T)):
        ahead, behind = now_T.copy(), now_T.copy()
        ahead[t] += step
        behind[t] -= step
        difference = by_loop(name, rows, ahead) - by_loop(name, rows, behind)
        wanted[t] = difference / (2 * step)
    np.testing.assert_allclose(gradient_T.numpy(), wanted, rtol=1e-6, atol=1e-9)
    assert np.abs(wanted).max() > 1e-3


def test_the_reference_points_of_kto_are_not_all_bounded_away() -> None:
    """Else the cases above would say nothing of them."""
    for name in ("kto, samples", "kto, other class"):
        found = []
        for seed in range(3):
            rows = Rows.of(CASES[name], seed)
            points = reference_points(CASES[name], rows.answers(rows.logprob_T.numpy()))
            found += list(points.values())
        assert max(found) > 0.05


@of_search(max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("name", list(CASES))
def test_micro_batches_that_split_units_change_nothing(name: str, data: st.DataObject) -> None:
    rows = Rows.of(CASES[name], 1)
    order = data.draw(st.permutations(range(len(COUNTS))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(COUNTS)), max_size=4)))
    bounds = [0, *cuts, len(COUNTS)]
    parts = [list(order[a:b]) for a, b in itertools.pairwise(bounds)]
    wanted, gradient_T = direct(CASES[name], rows)
    value, found_T = in_parts(CASES[name], rows, parts)
    assert value == pytest.approx(wanted, rel=1e-10)
    torch.testing.assert_close(found_T, gradient_T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_the_order_of_rows_and_their_names_change_nothing(name: str) -> None:
    rows = Rows.of(CASES[name], 2)
    scalars, _ = rows.scalars(rows.logprob_T, list(range(len(COUNTS))))
    straight = couple(CASES[name], rows.units, rows.names_R, scalars)
    order = torch.randperm(len(COUNTS), generator=torch.Generator().manual_seed(3))
    assert scalars.reference_R is not None
    shuffled = Scalars(
        scalars.scalar_R[order], scalars.reference_R[order], scalars.num_tokens_R[order]
    )
    found = couple(CASES[name], rows.units, rows.names_R[order], shuffled)
    torch.testing.assert_close(found.slope_R, straight.slope_R[order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.loss_R, straight.loss_R[order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", list(CASES))
def test_rows_in_no_unit_get_no_gradient(name: str) -> None:
    rows = Rows.of(CASES[name])
    _, gradient_T = direct(CASES[name], rows)
    bounds = rows.bounds
    in_units = torch.isin(rows.names_R, rows.units.row_M)
    assert 0 < int(in_units.sum()) < len(COUNTS)
    for row, is_in in enumerate(in_units.tolist()):
        share = gradient_T[bounds[row] : bounds[row + 1]]
        is_alone = CASES[name].unit == "group" and [row] in groups_that_train()
        assert bool((share != 0).any()) == (is_in and COUNTS[row] > 0 and not is_alone)


@pytest.mark.parametrize("name", list(PAIR_CASES))
def test_equal_rewards_make_no_pair(name: str) -> None:
    stage = group_stage(CASES[name], torch.full((10,), 0.7), torch.tensor(GROUPS))
    assert stage.coefficients["keep"].tolist() == [0.0] * 10
    assert set(stage.filtered) == set(GROUPS)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].needs_reference])
def test_without_a_reference_it_says_what_is_missing(name: str) -> None:
    rows = Rows.of(CASES[name])
    scalars, _ = rows.scalars(rows.logprob_T, list(range(len(COUNTS))))
    told = f"{CASES[name].loss} compares the policy with a reference, .* run reference workers"
    with pytest.raises(ValueError, match=told):
        couple(
            CASES[name], rows.units, rows.names_R, dataclasses.replace(scalars, reference_R=None)
        )


@pytest.mark.parametrize(
    "name", [n for n in CASES if not CASES[n].needs_reference and n not in GROUP_CASES]
)
def test_what_needs_no_reference_does_not_read_one(name: str) -> None:
    rows = Rows.of(CASES[name])
    scalars, _ = rows.scalars(rows.logprob_T, list(range(len(COUNTS))))
    without = dataclasses.replace(scalars, reference_R=None)
    found, alone = (
        couple(CASES[name], rows.units, rows.names_R, each) for each in (scalars, without)
    )
    assert torch.equal(found.slope_R, alone.slope_R)


def test_xpo_by_hand() -> None:
    """The companion, log-prob -12, is the worse row, then the better one: -log sigmoid(+-0.15) -
    12 / 100, and a slope of 1 / 100 more at its log-prob, whoever is preferred."""
    settings = preset("xpo", exploration_coef=0.01)
    logprob, reference = [
        torch.tensor(each, dtype=torch.float64) for each in ([-10, -12], [-11, -11.5])
    ]
    scalars = Scalars(logprob, reference, torch.ones(2, dtype=torch.float64))
    ahead = [(0.62095704778953, -0.04625701546562505), (0.77095704778953, -0.05374298453437495)]
    for first, (loss, slope) in zip((0, 1), ahead, strict=True):
        units = one_pair(first, 1 - first, is_beside=[first == 1, first == 0])
        found = couple(settings, units, torch.arange(2), scalars)
        assert float(found.loss_R.sum()) == pytest.approx(loss - 0.12, rel=1e-12)
        sign = 1 if first == 0 else -1
        assert found.slope_R.tolist() == pytest.approx([sign * slope, -sign * slope + 0.01])
        assert float(found.figures["companion_logprob"].sum()) == -12


@pytest.mark.parametrize("is_beside", [None, [False, False], [True, True]])
def test_xpo_needs_one_companion_in_every_pair(is_beside: list[bool] | None) -> None:
    values = torch.zeros(2, dtype=torch.float64)
    scalars = Scalars(values, values, torch.ones_like(values))
    with pytest.raises(ValueError, match="has not one of each: set pairs to companion"):
        couple(preset("xpo"), one_pair(0, 1, is_beside), torch.arange(2), scalars)


def one_pair(chosen: int, rejected: int, is_beside: list[bool] | None) -> Units:
    return Units(
        torch.tensor([chosen, rejected]),
        torch.tensor([0, 0]),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        None if is_beside is None else torch.tensor(is_beside),
    )


def test_what_kto_reports() -> None:
    """Implicit rewards and sides by hand, of three rows with log-ratios 2, -1 and 0.5, the first
    and last desirable; z is 0.5, their mean."""
    settings = LABEL_CASES["kto, samples"]
    units = Units(
        torch.tensor([0, 1, 2]),
        torch.tensor([0, 1, 2]),
        torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
        torch.full((3,), 1 / 3, dtype=torch.float64),
    )
    ratio_R = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    scalars = Scalars(ratio_R - 3, torch.full_like(ratio_R, -3), torch.ones_like(ratio_R))
    found = couple(settings, units, torch.arange(3), scalars)
    figures = {name: float(values_R.sum()) for name, values_R in found.figures.items()}
    assert figures == pytest.approx(
        {
            "accuracy": 2 / 3,
            "reference_point": 0.5,
            "desirable": 2 / 3,
            "chosen": settings.beta * 1.25,
            "rejected": -settings.beta,
        }
    )
    terms = found.terms(ratio_R, torch.arange(3))
    assert {"labels/reference_point", "loss"} <= set(terms.sums)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_kto_of_one_class_alone_has_a_reference_point_of_zero(label: float) -> None:
    settings = LABEL_CASES["kto, other class"]
    units = Units(
        torch.tensor([0]),
        torch.tensor([0]),
        torch.tensor([label], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
    )
    scalars = Scalars(*torch.tensor([[2.0], [-1.0], [4.0]], dtype=torch.float64))
    found = couple(settings, units, torch.tensor([0]), scalars)
    side = 1 if label else -1
    value = 1 / (1 + math.exp(-settings.beta * side * 3.0))
    assert float(found.loss_R.sum()) == pytest.approx(1 - value)
    assert float(found.figures["reference_point"].sum()) == 0.0


def question(labels: list[float], proxies: list[float], **changes: object) -> Coupling:
    """PACS of one prompt's samples, by what their log-probs rose since the step's start."""
    count = len(labels)
    units = Units(
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
    )
    rose_R = torch.tensor(proxies, dtype=torch.float64)
    scalars = Scalars(rose_R - 4, torch.full_like(rose_R, -4), torch.full_like(rose_R, 3))
    return couple(preset("pacs", **changes), units, torch.arange(count), scalars)


def test_what_pacs_reports_and_where_it_starts() -> None:
    """By hand: psi are 1.5, -0.75 and -0.75 of log-ratios 1, -0.5 and -0.5."""
    found = question([1, 0, 1], [1.0, -0.5, -0.5])
    figures = {name: float(values_R.sum()) for name, values_R in found.figures.items()}
    wanted = {"accuracy": 2 / 3, "desirable": 2 / 3, "margin": (1.5 + 0.75 - 0.75) / 3}
    assert figures == pytest.approx(wanted)
    # Both right samples weigh 3 / 4, the wrong one 3 / 2
    losses = 0.75 * softplus(-1.5) + 1.5 * softplus(-0.75) + 0.75 * softplus(0.75)
    assert float(found.loss_R.sum()) == pytest.approx(losses / 3)
    # With nothing learnt yet it is leave-one-out REINFORCE of half the weighted labels
    start = question([1, 0, 1], [0.0, 0.0, 0.0]).slope_R
    pulls = torch.tensor([0.375, -0.75, 0.375], dtype=torch.float64)
    torch.testing.assert_close(start, -(pulls - pulls.mean()) * 1.5 / 3)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_prompt_of_one_class_teaches_pacs_nothing_before_the_policy_moves(label: float) -> None:
    found = question([label] * 4, [0.0] * 4)
    assert float(found.loss_R.sum()) == pytest.approx(math.log(2))
    torch.testing.assert_close(found.slope_R, torch.zeros(4, dtype=torch.float64))
    assert float(question([label], [0.7]).slope_R) == 0.0


def test_pacs_without_log_probs_of_the_start_says_what_is_missing() -> None:
    rows = Rows.of(CASES["pacs"])
    scalars, _ = rows.scalars(rows.logprob_T, list(range(len(COUNTS))))
    without = dataclasses.replace(scalars, reference_R=None)
    with pytest.raises(ValueError, match="needs log-probs of the sampling policy"):
        couple(CASES["pacs"], rows.units, rows.names_R, without)


def test_weights_by_margin_are_one_at_the_threshold_and_turn_there() -> None:
    told = MarginWeightSettings()
    margins = torch.tensor([0.5, 2.0, told.threshold, 9.0, -told.threshold, -20.0]).double()
    weights = margin_weight(told, margins)
    hard, harder, *rest = weights.tolist()
    assert min(hard, harder) > 1 > rest[1]
    assert [rest[0], *rest[2:]] == pytest.approx([1, 1, 1])
    wanted = [margin_weight_by_hand(told, margin) for margin in margins.tolist()]
    assert weights.tolist() == pytest.approx(wanted, rel=1e-12)
    assert 1 / (1 + math.exp(-told.threshold)) == pytest.approx(0.999)
