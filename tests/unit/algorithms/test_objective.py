"""The objective against an independent loop in numpy, and the invariances that learners rely on."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.algorithms.aggregate import Denominators, denominators, row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.group_stage import group_stage
from manta.algorithms.losses import LOSSES
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import KlSettings, OffPolicySettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings, LossName
from tests.unit.algorithms.ragged import WORDS, Rows, loss_and_gradient, ragged_and_split

FULL = AlgorithmSettings(
    name="full",
    samples_per_prompt=4,
    clip_low=0.2,
    clip_high=0.28,
    kl=KlSettings(coef=0.3, estimator="k3"),
    entropy_coef=0.05,
    constant_length=17,
)
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum_constant")
CORRECTIONS = [
    OffPolicySettings(),
    *(
        OffPolicySettings(*told)
        for level in ("token", "sequence")
        for told in (("weight", level), ("truncate", level, None, 1.3), ("mask", level, 0.7, 1.4))
    ),
]


def corrected(algorithm: AlgorithmSettings, off_policy: OffPolicySettings) -> AlgorithmSettings:
    proximal = algorithm.proximal if off_policy.correction == "none" else "learner"
    return dataclasses.replace(algorithm, off_policy=off_policy, proximal=proximal)


def weight_by_loop(told: OffPolicySettings, differences: list[float]) -> float:
    """The weight from the log-ratios whose product counts, after the sources' formulas."""
    ratio = math.exp(math.fsum(differences))
    if told.correction == "truncate":
        return min(ratio, told.high)
    if told.correction == "mask":
        return ratio if told.low <= ratio <= told.high else 0.0
    return ratio if told.correction == "weight" else 1.0


def by_loop(rows: Rows, algorithm: AlgorithmSettings) -> dict[str, float]:
    """The loss and all that is reported, from the formulas, token by token."""
    statistics = {name: value.numpy() for name, value in rows.statistics().items()}
    old = rows.proximal_T if algorithm.proximal == "learner" else rows.behaviour_T
    weights = row_weight(rows.columns).numpy()
    counts = rows.counts_R.numpy()
    total_tokens, total_rows = (weights * counts).sum(), weights[counts > 0].sum()
    out: dict[str, float] = dict.fromkeys(REPORTED, 0.0)
    told = algorithm.off_policy
    difference = (rows.proximal_T - rows.behaviour_T).tolist()
    t = -1
    for row, count in enumerate(counts):
        whole_row = difference[t + 1 : t + 1 + count]
        advantage = float(rows.columns["advantage"][row])
        for _ in range(count):
            t += 1
            if weights[row] == 0:
                continue
            logprob, reference = statistics["logprob"][t], float(rows.reference_T[t])
            whose = whole_row if told.level == "sequence" else [difference[t]]
            weight = weight_by_loop(told, whose)
            ratio = math.exp(logprob - float(old[t])) if weight else 1.0
            bounded = min(max(ratio, 1 - algorithm.clip_low), 1 + algorithm.clip_high)
            policy = weight * max(-ratio * advantage, -bounded * advantage)
            log_r = reference - logprob
            kl = {"k2": log_r**2 / 2, "k3": math.exp(log_r) - 1 - log_r}[algorithm.kl.estimator]
            whole = policy + algorithm.kl.coef * kl
            whole -= algorithm.entropy_coef * statistics["entropy"][t]
            share = {
                "token_mean": weights[row] / total_tokens,
                "sequence_mean": weights[row] / (count * total_rows),
                "sequence_sum_constant": weights[row] / (algorithm.constant_length * total_rows),
            }[algorithm.aggregation]
            gap = logprob - float(rows.behaviour_T[t])
            out["loss"] += share * whole
            out["policy_loss"] += share * policy
            for name, value in {
                "kl_reference": kl,
                "kl_reference_k1": -log_r,
                "kl_reference_k3": math.exp(log_r) - 1 - log_r,
                "entropy": statistics["entropy"][t],
                "clip_fraction_low": advantage < 0 and ratio < 1 - algorithm.clip_low,
                "clip_fraction_high": advantage > 0 and ratio > 1 + algorithm.clip_high,
                "ratio_mean": ratio,
                "kl_behaviour": math.exp(gap) - 1 - gap,
                "kl_behaviour_k1": -gap,
                "weight_mean": weight,
            }.items():
                out[name] += weights[row] / total_tokens * value
            out["ratio_max"] = max(out["ratio_max"], ratio)
    if told.correction == "none":
        del out["weight_mean"]
    return out


MAXIMA = ("ratio_max",)
REPORTED = (
    *("loss", "policy_loss", "kl_reference", "entropy", "ratio_mean", "kl_behaviour"),
    *("kl_reference_k1", "kl_reference_k3", "kl_behaviour_k1"),
    *("clip_fraction_low", "clip_fraction_high", "weight_mean", *MAXIMA),
)


@pytest.mark.parametrize(
    ("aggregation", "estimator", "proximal"),
    list(itertools.product(AGGREGATIONS, ("k2", "k3"), ("behaviour", "learner"))),
)
def test_loss_and_figures_match_a_loop(aggregation: str, estimator: str, proximal: str) -> None:
    algorithm = dataclasses.replace(
        FULL,
        aggregation=aggregation,
        proximal=proximal,
        kl=KlSettings(coef=0.3, estimator=estimator),
    )
    rows = Rows.random([5, 0, 3, 8, 1, 13, 2, 2], seed=7)
    assert 0 < row_weight(rows.columns).count_nonzero() < 8
    terms = rows.terms(algorithm, rows.update)
    figures = {name: value.item() for name, value in (terms.sums | terms.maxima).items()}
    assert set(terms.maxima) == set(MAXIMA)
    assert figures == pytest.approx(by_loop(rows, algorithm), rel=1e-12, abs=1e-14)
    assert terms.loss.item() == figures["loss"]
    assert figures["clip_fraction_low"] > 0 and figures["clip_fraction_high"] > 0


@pytest.mark.parametrize("off_policy", CORRECTIONS, ids=str)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_off_policy_losses_match_a_loop(aggregation: str, off_policy: OffPolicySettings) -> None:
    algorithm = corrected(dataclasses.replace(FULL, aggregation=aggregation), off_policy)
    weights = set()
    for seed in range(7, 12):
        rows = Rows.random([5, 0, 3, 8, 1, 13, 2, 2], seed=seed)
        terms = rows.terms(algorithm, rows.update)
        figures = {name: value.item() for name, value in (terms.sums | terms.maxima).items()}
        assert figures == pytest.approx(by_loop(rows, algorithm), rel=1e-11, abs=1e-13)
        weights.add(figures.get("weight_mean", 1.0))
    assert (weights == {1.0}) == (off_policy.correction == "none")


@pytest.mark.parametrize("off_policy", CORRECTIONS, ids=str)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradient_matches_finite_differences(
    aggregation: str, off_policy: OffPolicySettings
) -> None:
    algorithm = corrected(dataclasses.replace(FULL, aggregation=aggregation), off_policy)
    rows = Rows.random([3, 4, 0, 2], seed=1)
    assert torch.autograd.gradcheck(
        lambda x: dataclasses.replace(rows, logits_TV=x).terms(algorithm, rows.update).loss,
        (rows.logits_TV.clone().requires_grad_(),),
    )


@settings(max_examples=80, deadline=None)
@given(
    ragged_and_split(),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(CORRECTIONS),
    st.sampled_from(sorted(LOSSES)),
    st.integers(0, 2**16),
)
def test_any_split_into_micro_batches_gives_the_same_update(
    shape: tuple[list[int], list[list[int]]],
    aggregation: str,
    off_policy: OffPolicySettings,
    loss: LossName,
    seed: int,
) -> None:
    counts, parts = shape
    told = dataclasses.replace(FULL, aggregation=aggregation, loss=loss)
    algorithm = corrected(told, off_policy)
    rows = Rows.random(counts, seed)
    whole, gradient = loss_and_gradient(rows, algorithm, rows.update)
    done = [loss_and_gradient(rows.take(part), algorithm, rows.update) for part in parts]
    for name, value in whole.sums.items():
        total = sum(terms.sums[name].item() for terms, _ in done)
        assert total == pytest.approx(value.item(), rel=1e-10, abs=1e-10)
    for name, value in whole.maxima.items():
        assert max(terms.maxima[name].item() for terms, _ in done) == value.item()
    # Each row's gradient is the one it has in the whole batch.
    dealt = [row for part in parts for row in part]
    expected = dataclasses.replace(rows, logits_TV=gradient).take(dealt).logits_TV
    split = torch.cat([gradient for _, gradient in done])
    torch.testing.assert_close(split, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_not_kept_are_as_if_they_had_not_been_there(aggregation: str) -> None:
    algorithm = dataclasses.replace(FULL, aggregation=aggregation)
    rows = Rows.random([4, 2, 6, 3], seed=3)
    rows.columns["keep"][:] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    rows.columns["advantage"][1] = float("nan")
    for values in (rows.behaviour_T, rows.reference_T):
        values[4:6] = -float("inf")
    terms, gradient = loss_and_gradient(rows, algorithm, rows.update)
    kept = rows.take([0, 2])
    expected, expected_gradient = loss_and_gradient(kept, algorithm, kept.update)
    for name, value in (expected.sums | expected.maxima).items():
        torch.testing.assert_close((terms.sums | terms.maxima)[name], value)
    place = torch.tensor([True] * 4 + [False] * 2 + [True] * 6 + [False] * 3)
    torch.testing.assert_close(gradient[place], expected_gradient)
    assert torch.equal(gradient[~place], torch.zeros(5, WORDS, dtype=torch.float64))


def test_maxima_are_those_of_kept_tokens() -> None:
    rows = Rows.random([2, 3], seed=10)
    rows.columns["keep"][:] = torch.tensor([1.0, 0.0])
    logprob_T = rows.statistics()["logprob"]
    rows = dataclasses.replace(rows, behaviour_T=logprob_T + math.log(2))
    maxima = rows.terms(FULL, rows.update).maxima
    assert maxima["ratio_max"].item() == pytest.approx(0.5)


def test_kl_in_the_reward_is_reported_but_not_in_the_loss() -> None:
    rows = Rows.random([4, 2, 6], seed=5)
    penalised = dataclasses.replace(
        FULL, kl=KlSettings(coef=9.0, estimator="k1", placement="reward"), entropy_coef=0.0
    )
    sums = rows.terms(penalised, rows.update).sums
    assert sums["loss"].item() == sums["policy_loss"].item()
    assert sums["kl_reference"].item() != 0.0


def test_sft_is_the_mean_negative_log_likelihood_of_given_answers() -> None:
    rows = Rows.random([4, 0, 6], seed=6)
    stage = group_stage(PRESETS["sft"], torch.zeros(3), torch.arange(3))
    batch = flatten(
        PRESETS["sft"],
        rows.counts_R,
        stage.coefficients,
        denominators(rows.counts_R, row_weight(stage.coefficients)),
    )
    objective = Objective(PRESETS["sft"])
    terms = objective.loss(batch, rows.statistics())
    expected = torch.nn.functional.cross_entropy(rows.logits_TV, rows.tokens_T)
    torch.testing.assert_close(terms.loss, expected, check_dtype=False, rtol=1e-6, atol=0)
    assert set(terms.sums) == {"loss", "policy_loss"}
    assert terms.maxima == {}


def test_an_empty_micro_batch_adds_nothing_and_can_go_backward() -> None:
    rows = Rows.random([0, 0], seed=8)
    terms, gradient = loss_and_gradient(rows, FULL, Denominators(10.0, 2.0))
    assert gradient.shape == (0, WORDS)
    assert {value.item() for value in (terms.sums | terms.maxima).values()} == {0.0}


def test_wants_entropy_only_where_it_is_used() -> None:
    assert Objective(PRESETS["grpo"]).wants == ("logprob",)
    assert Objective(PRESETS["grpo"], report_entropy=True).wants == ("logprob", "entropy")
    assert Objective(FULL).wants == ("logprob", "entropy")
    assert Objective(PRESETS["grpo"]).needs_reference
    assert not Objective(PRESETS["dapo"]).needs_reference


def test_missing_log_probs_are_named() -> None:
    rows = Rows.random([2, 3], seed=9)
    bare = flatten(PRESETS["grpo"], rows.counts_R, rows.columns, rows.update)
    with pytest.raises(ValueError, match="needs log-probs of the sampling policy"):
        Objective(PRESETS["grpo"]).loss(bare, rows.statistics())
    sampled = dataclasses.replace(bare, behaviour_T=rows.behaviour_T)
    with pytest.raises(ValueError, match="no reference log-probs"):
        Objective(PRESETS["grpo"]).loss(sampled, rows.statistics())


def test_the_kl_to_the_reference_is_estimated_from_sampled_tokens_alone() -> None:
    rows = Rows.random([4, 2, 6], seed=5)
    batch = rows.batch(FULL, rows.update)
    figures = ("kl_reference", "kl_reference_k1", "kl_reference_k3")
    whole = Objective(FULL).loss(batch, rows.statistics()).sums
    behaviour_T = batch.behaviour_T
    assert behaviour_T is not None and all(whole[name] != 0 for name in figures)
    given_T = behaviour_T.clone()
    given_T[4:6] = math.nan
    of_some = dataclasses.replace(batch, behaviour_T=given_T)
    some = Objective(FULL).seen(of_some, rows.statistics())
    left_out = dataclasses.replace(batch, mean_T=batch.mean_T.clone())
    left_out.mean_T[4:6] = 0.0
    expected = Objective(FULL).seen(left_out, rows.statistics())
    assert {name: some[name] for name in figures[1:]} == {n: expected[n] for n in figures[1:]}
    nobody = dataclasses.replace(batch, behaviour_T=None)
    assert not set(figures) & Objective(FULL).seen(nobody, rows.statistics()).keys()
