"""Every loss with a ratio, against its formula in plain loops, and what must hold for all of them.

A new loss adds a line to CASES; that micro-batches change nothing is in test_objective. ROVER is
no surrogate of a reward: test_rover.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import row_weight
from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.coupled_losses import LOSSES as COUPLED
from manta.algorithms.flatten import flatten
from manta.algorithms.losses import LOSSES
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import CovarianceSettings, OffPolicySettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.tokens import LossTerms
from tests.unit.algorithms.ragged import Rows


@dataclasses.dataclass(frozen=True)
class Row:
    """One row's tokens: log-ratios to the proximal policy, current (`now`) and where the formula
    stops the gradient (`held`), the current log-probs, and which tokens a step has chosen."""

    now: list[float]
    held: list[float]
    logprobs: list[float]
    advantage: float
    chosen: list[bool]


RowTerms = Callable[[AlgorithmSettings, Row], list[float]]
"""The terms of a row's tokens."""


def clip(settings: AlgorithmSettings, ratio: float, advantage: float) -> float:
    bounded = min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high)
    return -min(ratio * advantage, bounded * advantage)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def ppo_row(s: AlgorithmSettings, row: Row) -> list[float]:
    return [clip(s, math.exp(d), row.advantage) for d in row.now]


def dual_row(s: AlgorithmSettings, row: Row) -> list[float]:
    assert s.dual_clip is not None
    most = s.dual_clip * abs(row.advantage) if row.advantage < 0 else math.inf
    return [min(clip(s, math.exp(d), row.advantage), most) for d in row.now]


def gspo_row(s: AlgorithmSettings, row: Row) -> list[float]:
    likelihood_ratio = math.prod(math.exp(d) for d in row.now)
    return [clip(s, likelihood_ratio ** (1 / len(row.now)), row.advantage)] * len(row.now)


def gspo_token_row(s: AlgorithmSettings, row: Row) -> list[float]:
    whole = math.exp(mean(row.held))
    ratios = [whole * math.exp(d) / math.exp(h) for d, h in zip(row.now, row.held, strict=True)]
    return [clip(s, ratio, row.advantage) for ratio in ratios]


def cispo_row(s: AlgorithmSettings, row: Row) -> list[float]:
    weights = [min(max(math.exp(h), 1 - s.clip_low), 1 + s.clip_high) for h in row.held]
    return [-w * row.advantage * p for w, p in zip(weights, row.logprobs, strict=True)]


def gmpo_row(s: AlgorithmSettings, row: Row) -> list[float]:
    low, high, a = math.exp(-s.clip_low), math.exp(s.clip_high), row.advantage
    # |min(ratio A, clip(ratio) A)| of every token, their geometric mean, and the sign of A.
    sizes = [abs(min(math.exp(d) * a, min(max(math.exp(d), low), high) * a)) for d in row.now]
    return [-(math.prod(sizes) ** (1 / len(sizes))) * math.copysign(1, a)] * len(sizes)


def sapo_row(s: AlgorithmSettings, row: Row) -> list[float]:
    tau = s.tau_positive if row.advantage > 0 else s.tau_negative
    gates = [1 / (1 + math.exp(-tau * (math.exp(d) - 1))) for d in row.now]
    return [-row.advantage * 4 / tau * gate for gate in gates]


def clip_cov_row(s: AlgorithmSettings, row: Row) -> list[float]:
    found = zip(row.now, row.chosen, strict=True)
    return [0.0 if chosen else clip(s, math.exp(d), row.advantage) for d, chosen in found]


def kl_cov_row(s: AlgorithmSettings, row: Row) -> list[float]:
    """KL(old || new) of a token drawn from old, d being log new - log old."""
    charge = {
        "absolute": abs,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(d) - 1 - d,
    }[s.covariance.estimator]
    found = zip(row.now, row.chosen, strict=True)
    return [
        -math.exp(d) * row.advantage + s.covariance.coef * chosen * charge(d) for d, chosen in found
    ]


PPO = AlgorithmSettings("ppo", clip_low=0.2, clip_high=0.28, constant_length=17)


def variant(loss: str, **told: object) -> AlgorithmSettings:
    return dataclasses.replace(PPO, loss=loss, **told)  # type: ignore[arg-type]


CASES: dict[str, tuple[AlgorithmSettings, RowTerms]] = {
    "clipped_surrogate": (PPO, ppo_row),
    "clipped_surrogate, dual": (variant("clipped_surrogate", dual_clip=1.5), dual_row),
    "gspo": (variant("gspo", clip_low=0.05, clip_high=0.1), gspo_row),
    "gspo_token": (variant("gspo_token", clip_low=0.05, clip_high=0.1), gspo_token_row),
    "cispo": (variant("cispo", clip_high=0.3), cispo_row),
    "gmpo": (variant("gmpo", clip_low=0.2, clip_high=0.1), gmpo_row),
    "sapo": (variant("sapo", tau_positive=1.0, tau_negative=2.5), sapo_row),
    "clip_cov": (variant("clip_cov"), clip_cov_row),
    "kl_cov": (variant("kl_cov", covariance=CovarianceSettings(coef=0.7)), kl_cov_row),
    **{
        f"kl_cov, {name}": (
            variant("kl_cov", covariance=CovarianceSettings(coef=0.7, estimator=name)),
            kl_cov_row,
        )
        for name in ("absolute", "k2")
    },
}
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum_constant")
MASK = OffPolicySettings("mask", "token", 0.7, 1.4)


def at(rows: Rows, algorithm: AlgorithmSettings, logprob_T: Tensor) -> LossTerms:
    """The loss of `rows` where the current policy says `logprob_T`."""
    batch = flatten(
        algorithm,
        rows.counts_R,
        rows.columns,
        rows.update,
        behaviour_T=rows.behaviour_T,
        proximal_T=rows.proximal_T if algorithm.proximal == "learner" else None,
        selected_T=rows.selected_T if algorithm.chooses_tokens else None,
    )
    return Objective(algorithm).loss(batch, {"logprob": logprob_T})


def by_loop(
    rows: Rows, algorithm: AlgorithmSettings, terms: RowTerms, now_T: np.ndarray, held_T: np.ndarray
) -> float:
    """The loss by the formula, row by row. A masked token has ratio 1 and weight 0."""
    has_proximal = algorithm.proximal == "learner"
    old_T = (rows.proximal_T if has_proximal else rows.behaviour_T).numpy()
    mismatch_T = np.exp(rows.proximal_T.numpy() - rows.behaviour_T.numpy())
    weights, counts = row_weight(rows.columns).numpy(), rows.counts_R.numpy()
    total_tokens, total_rows = (weights * counts).sum(), weights[counts > 0].sum()
    loss, start = 0.0, 0
    for row, count in enumerate(counts):
        places = range(start, start + count)
        start += count
        if not count or not weights[row]:
            continue
        correction = np.ones(count)
        if algorithm.off_policy.correction == "mask":
            inside = [0.7 <= mismatch_T[t] <= 1.4 for t in places]
            correction = np.where(inside, mismatch_T[list(places)], 0.0)
        now, held = (
            [float(x[t] - old_T[t]) if c else 0.0 for t, c in zip(places, correction, strict=True)]
            for x in (now_T, held_T)
        )
        advantage = float(rows.columns["advantage"][row])
        assert rows.selected_T is not None
        chosen = rows.selected_T[list(places)].tolist()
        logprobs = [float(now_T[t]) for t in places]
        found = terms(algorithm, Row(now, held, logprobs, advantage, chosen))
        share = {
            "token_mean": weights[row] / total_tokens,
            "sequence_mean": weights[row] / (count * total_rows),
            "sequence_sum_constant": weights[row] / (algorithm.constant_length * total_rows),
        }[algorithm.aggregation]
        loss += share * math.fsum(correction * np.array(found))
    return loss


def by_differences(
    rows: Rows, algorithm: AlgorithmSettings, terms: RowTerms, logprob_T: np.ndarray
) -> np.ndarray:
    """The gradient of the formula by the current log-probs, its stopped parts held."""
    gradient, step = np.zeros_like(logprob_T), 1e-6
    for t in range(len(logprob_T)):
        ahead, behind = logprob_T.copy(), logprob_T.copy()
        ahead[t] += step
        behind[t] -= step
        difference = by_loop(rows, algorithm, terms, ahead, logprob_T)
        difference -= by_loop(rows, algorithm, terms, behind, logprob_T)
        gradient[t] = difference / (2 * step)
    return gradient


def test_every_loss_has_a_case_and_a_kind() -> None:
    assert {settings.loss for settings, _ in CASES.values()} == set(LOSSES) - {"rover"}
    plain = {name for name, kind in LOSS_KINDS.items() if kind.is_plain}
    assert set(LOSS_KINDS) == {*LOSSES, *COUPLED, *plain, "cross_entropy", "teacher_kl"}
    assert plain == {"policy_gradient"}
    assert {name for name, kind in LOSS_KINDS.items() if kind.ratio} == set(LOSSES)


@pytest.mark.parametrize("name", list(CASES))
def test_value_and_gradient_are_those_of_the_formula(name: str) -> None:
    settings, terms = CASES[name]
    seen = set()
    for (seed, aggregation), is_masked in itertools.product(enumerate(AGGREGATIONS), (False, True)):
        algorithm = dataclasses.replace(settings, aggregation=aggregation)
        if is_masked:
            algorithm = dataclasses.replace(algorithm, proximal="learner", off_policy=MASK)
        rows = Rows.random([5, 0, 3, 6, 1, 2], seed=seed)
        logprob_T = rows.statistics()["logprob"].clone().requires_grad_()
        found = at(rows, algorithm, logprob_T)
        (gradient_T,) = torch.autograd.grad(found.loss, logprob_T)
        now_T = logprob_T.detach().numpy()
        wanted = by_differences(rows, algorithm, terms, now_T)
        np.testing.assert_allclose(gradient_T.numpy(), wanted, rtol=1e-6, atol=1e-9)
        value = by_loop(rows, algorithm, terms, now_T, now_T)
        assert found.loss.item() == pytest.approx(value, rel=1e-12, abs=1e-14)
        kept_T = row_weight(rows.columns).repeat_interleave(rows.counts_R) > 0
        assert torch.equal(gradient_T[~kept_T], torch.zeros(int((~kept_T).sum())).double())
        seen |= {figure for figure, value in found.sums.items() if value != 0}
    figures = {"sapo": "gate_mean", "kl_cov": "covariance_fraction"}
    assert figures.get(settings.loss, "clip_fraction_low") in seen


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_at_ratio_one_the_gradient_is_that_of_reinforce(name: str, aggregation: str) -> None:
    algorithm = dataclasses.replace(CASES[name][0], aggregation=aggregation)
    rows = Rows.random([4, 2, 6, 0, 1], seed=4)
    rows = dataclasses.replace(rows, behaviour_T=rows.statistics()["logprob"])
    logprob_T = rows.behaviour_T.clone().requires_grad_()
    found = at(rows, algorithm, logprob_T)
    (gradient_T,) = torch.autograd.grad(found.loss, logprob_T)
    batch = flatten(algorithm, rows.counts_R, rows.columns, rows.update)
    learns_T = torch.ones_like(batch.weight_T)
    if algorithm.loss == "clip_cov":
        learns_T[rows.selected_T] = 0.0
    torch.testing.assert_close(gradient_T, -learns_T * batch.weight_T * batch.advantage_T)
    assert found.sums["ratio_mean"].item() == pytest.approx(1.0)
    assert all(not value for figure, value in found.sums.items() if "clip_fraction" in figure)


@pytest.mark.parametrize("name", list(CASES))
def test_what_does_not_train_may_be_infinite(name: str) -> None:
    algorithm = CASES[name][0]
    rows = Rows.random([4, 2, 6], seed=3)
    rows.columns["keep"][:] = torch.tensor([1.0, 0.0, 1.0])
    rows.columns["advantage"][1] = math.nan
    logprob_T = rows.statistics()["logprob"].clone()
    logprob_T[4:6] = rows.behaviour_T[4:6] = -math.inf
    logprob_T.requires_grad_()
    found = at(rows, algorithm, logprob_T)
    (gradient_T,) = torch.autograd.grad(found.loss, logprob_T)
    kept = rows.take([0, 2])
    alone = at(kept, algorithm, kept.statistics()["logprob"])
    torch.testing.assert_close(found.loss, alone.loss)
    assert gradient_T.isfinite().all()
    assert gradient_T[4:6].tolist() == [0.0, 0.0]


def test_both_forms_of_gspo_agree_where_a_row_has_one_advantage() -> None:
    rows = Rows.random([5, 3, 8, 1], seed=6)
    found = []
    for name in ("gspo", "gspo_token"):
        algorithm = dataclasses.replace(CASES[name][0], aggregation="sequence_mean")
        logprob_T = rows.statistics()["logprob"].clone().requires_grad_()
        loss = at(rows, algorithm, logprob_T).loss
        found.append((loss.detach(), *torch.autograd.grad(loss, logprob_T)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_a_row_s_ratio_does_not_lose_what_bounds_of_3e_4_look_at() -> None:
    """20,000 tokens in float32, each with a log-ratio of 3.5e-4."""
    num = 20_000
    rows = Rows(
        torch.tensor([num]),
        {"advantage": torch.ones(1), "keep": torch.ones(1)},
        torch.zeros(num, dtype=torch.int64),
        torch.zeros(num, 7),
        behaviour_T=torch.full((num,), -3.5e-4),
        proximal_T=torch.zeros(num),
        reference_T=torch.zeros(num),
    )
    behaviour = dataclasses.replace(PRESETS["gspo"], proximal="behaviour")
    found = at(rows, behaviour, torch.zeros(num))
    assert found.maxima["ratio_max"].item() - 1 == pytest.approx(3.5e-4, abs=2e-7)


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("log_ratio", [-200.0, 200.0])
def test_a_ratio_that_float32_does_not_know_spoils_nothing(name: str, log_ratio: float) -> None:
    rows = Rows.random([4, 2, 6], seed=3)
    start_T = rows.statistics()["logprob"].float()
    moved_T = start_T.clone()
    moved_T[4:6] += log_ratio
    rows = dataclasses.replace(
        rows, behaviour_T=start_T, proximal_T=start_T, reference_T=start_T,
        selected_T=torch.ones(12, dtype=torch.bool),
    )  # fmt: skip
    found = at(rows, CASES[name][0], moved_T.requires_grad_())
    (gradient_T,) = torch.autograd.grad(found.loss, moved_T)
    assert gradient_T.isfinite().all()
    assert math.isfinite(found.loss.item()) and math.isfinite(found.sums["ratio_mean"])
