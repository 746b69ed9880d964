"""A row beside the samples: ReMax's baseline and GRAO's answer, against loops over formulas."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.advantages import ADVANTAGES, StepRewards
from manta.algorithms.aggregate import Denominators, denominators, row_weight
from manta.algorithms.contradictions import check
from manta.algorithms.flatten import flatten
from manta.algorithms.group_stage import group_stage
from manta.algorithms.mismatch import MismatchTally
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import FilterSettings, KlSettings, OffPolicySettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.step_tally import StepTally
from manta.algorithms.tokens import LossTerms

REMAX, GRAO = PRESETS["remax"], PRESETS["grao"]
PROMPTS, SAMPLES = 3, 4


def alone(values: Tensor) -> Tensor:
    return values


class Step:
    """`PROMPTS` groups of `SAMPLES` samples and a companion, rows in any order, ragged lengths."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        order = generator.permutation(PROMPTS * (SAMPLES + 1))
        self.group = np.repeat(np.arange(PROMPTS) * 7 + 2, SAMPLES + 1)[order]
        self.is_companion = np.tile(np.arange(SAMPLES + 1) == SAMPLES, PROMPTS)[order]
        self.rewards = generator.normal(size=len(order))
        self.counts = generator.integers(1, 6, len(order))
        self.logprobs = -generator.exponential(size=self.counts.sum())
        behaviour = self.logprobs + generator.normal(0, 0.2, len(self.logprobs))
        self.of_row = np.repeat(np.arange(len(order)), self.counts)
        self.behaviour = np.where(self.is_companion[self.of_row], np.nan, behaviour)

    @property
    def told(self) -> StepRewards:
        return StepRewards(
            torch.from_numpy(self.rewards),
            torch.from_numpy(self.group),
            torch.from_numpy(self.counts),
            {},
            torch.from_numpy(self.is_companion),
        )

    def columns(self, settings: AlgorithmSettings) -> dict[str, Tensor]:
        told = self.told
        stage = group_stage(settings, *told[:2], None, told.num_tokens_N, {}, told.is_companion_N)
        exact = ADVANTAGES[settings.advantage](settings, told)
        torch.testing.assert_close(stage.coefficients["advantage"], exact.float())
        return {**stage.coefficients, "advantage": exact}

    def members(self, group: int) -> tuple[list[int], int]:
        """The rows of its samples, and its companion's."""
        rows = [i for i, each in enumerate(self.group) if each == group]
        [companion] = [i for i in rows if self.is_companion[i]]
        return [i for i in rows if i != companion], companion

    def mean_logprob(self, row: int, logprobs: np.ndarray) -> float:
        return float(logprobs[self.of_row == row].mean())


def loss_at(
    settings: AlgorithmSettings,
    step: Step,
    logprob_T: Tensor,
    rows: np.ndarray | None = None,
    tally: StepTally | None = None,
) -> LossTerms:
    """Of `rows` (all) as a part of the whole step."""
    columns = step.columns(settings)
    counts = torch.from_numpy(step.counts)
    weight_R = row_weight(columns)
    is_given = torch.from_numpy(step.is_companion)
    update = denominators(counts, weight_R, is_given)
    chosen = np.arange(len(step.counts)) if rows is None else rows
    at_T = torch.from_numpy(np.isin(step.of_row, chosen))
    batch = flatten(
        settings,
        counts[chosen],
        {name: values[chosen] for name, values in columns.items()},
        update,
        behaviour_T=torch.from_numpy(step.behaviour)[at_T],
    )
    stats = {"logprob": logprob_T[at_T], "entropy": -logprob_T.detach()[at_T]}
    return Objective(settings, report_entropy=True).loss(batch, stats, tally)


def remax_by_loop(step: Step) -> list[float]:
    wanted = []
    for row, group in enumerate(step.group):
        _, greedy = step.members(group)
        wanted.append(step.rewards[row] - step.rewards[greedy])
    return wanted


def grao_by_loop(step: Step, settings: AlgorithmSettings, logprobs: np.ndarray) -> float:
    """J of the paper, the mean over prompts, from the mean log-probs of whole rows."""
    objectives = []
    for group in sorted(set(step.group.tolist())):
        samples, given = step.members(group)
        pool = step.rewards[[*samples, given]]
        scale = pool.std(ddof=1) + settings.std_epsilon
        advantage = {i: (step.rewards[i] - pool.mean()) / scale for i in (*samples, given)}
        m = {i: step.mean_logprob(i, logprobs) for i in (*samples, given)}
        objectives.append(
            np.mean(
                [
                    advantage[i] * m[i]
                    + settings.imitation_coef * advantage[given] * m[given]
                    + settings.alignment_coef * advantage[i] * (m[i] - m[given])
                    for i in samples
                ]
            )
        )
    return float(np.mean(objectives))


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_reward_is_the_baseline(seed: int) -> None:
    step = Step(seed)
    found = ADVANTAGES["greedy_baseline"](REMAX, step.told)
    np.testing.assert_allclose(found.numpy(), remax_by_loop(step), rtol=1e-12)
    stage = group_stage(REMAX, *step.told[:2], is_companion_N=step.told.is_companion_N)
    keep = stage.coefficients["keep"].bool().numpy()
    assert (keep == ~step.is_companion).all()
    assert not stage.coefficients["advantage"].numpy()[step.is_companion].any()


@pytest.mark.parametrize("coefs", [(0.5, 0.6), (1.0, 0.0), (0.0, 2.0)])
def test_the_loss_of_grao_is_its_objective_with_the_other_sign(
    coefs: tuple[float, float],
) -> None:
    """Value and gradient: J in a loop over rows, and its finite differences by every log-prob."""
    settings = dataclasses.replace(GRAO, imitation_coef=coefs[0], alignment_coef=coefs[1])
    step = Step(3)
    logprob_T = torch.from_numpy(step.logprobs).requires_grad_()
    terms = loss_at(settings, step, logprob_T)
    assert terms.loss.item() == pytest.approx(-grao_by_loop(step, settings, step.logprobs))
    (gradient,) = torch.autograd.grad(terms.loss, logprob_T)
    for t in range(len(step.logprobs)):
        moved = [step.logprobs.copy(), step.logprobs.copy()]
        moved[0][t] += 1e-5
        moved[1][t] -= 1e-5
        up, down = (-grao_by_loop(step, settings, each) for each in moved)
        assert gradient[t].item() == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-9)


def test_alignment_by_hand() -> None:
    """Rewards 0 and 1, answer 2: A is -1, 0, 1. Samples get 3/2 * 1.6 A, the answer
    3 (0.5 * 1 + 0.6 / 2)."""
    settings = dataclasses.replace(GRAO, std_epsilon=0.0)
    told = StepRewards(
        torch.tensor([0.0, 1.0, 2.0]),
        torch.zeros(3, dtype=torch.int64),
        torch.ones(3, dtype=torch.int64),
        {},
        torch.tensor([False, False, True]),
    )
    found = ADVANTAGES["alignment"](settings, told)
    torch.testing.assert_close(found, torch.tensor([-2.4, 0.0, 2.4]).double())
    equal = told._replace(rewards_N=torch.full((3,), 0.3))
    assert ADVANTAGES["alignment"](GRAO, equal).tolist() == [0.0] * 3


@pytest.mark.parametrize("name", ["greedy_baseline", "alignment"])
def test_a_group_without_companion_is_refused(name: str) -> None:
    told = Step().told
    for missing in (None, torch.zeros_like(told.group_N, dtype=torch.bool)):
        with pytest.raises(ValueError, match="needs one companion in every group"):
            ADVANTAGES[name](GRAO, told._replace(is_companion_N=missing))


def test_what_is_measured_of_sampled_tokens_leaves_given_ones_out() -> None:
    """Means over the sampled tokens alone, in a loop; the same however rows are cut."""
    step = Step(5)
    logprob_T = torch.from_numpy(step.logprobs)
    sampled = ~np.isnan(step.behaviour)
    gaps = (step.logprobs - step.behaviour)[sampled]
    wanted = {
        "kl_behaviour_k1": float(-gaps.mean()),
        "kl_behaviour": float(np.mean([math.exp(g) - 1 - g for g in gaps])),
        "entropy": float(-step.logprobs[sampled].mean()),
    }
    whole_tally, tally = StepTally(), StepTally()
    whole = loss_at(GRAO, step, logprob_T, tally=whole_tally)
    assert {name: float(whole.sums[name]) for name in wanted} == pytest.approx(wanted)
    ratios = np.exp(gaps)
    ess = ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum())
    assert whole_tally.distributions(alone).figures == {"ess": pytest.approx(ess)}
    parts = [loss_at(GRAO, step, logprob_T, np.array([i]), tally) for i in range(len(step.counts))]
    assert whole.sums.keys() == parts[0].sums.keys()
    for name, value in whole.sums.items():
        assert sum(float(part.sums[name]) for part in parts) == pytest.approx(float(value)), name
    assert tally.distributions(alone).figures == {"ess": pytest.approx(ess)}


def test_a_part_of_given_rows_alone_adds_nothing_to_what_is_measured_of_samples() -> None:
    """As on a rank whose rows nobody sampled: it knows no log-prob of a behaviour policy."""
    columns = {"advantage": torch.ones(1), "keep": torch.ones(1)}
    update = Denominators(6.0, 2.0, sampled_tokens=4.0)
    batch = flatten(GRAO, torch.tensor([2]), columns, update)
    stats = {"logprob": torch.full((2,), -1.0), "entropy": torch.full((2,), 3.0)}
    terms = Objective(GRAO, report_entropy=True).loss(batch, stats)
    assert float(terms.sums["entropy"]) == 0.0
    assert terms.loss.item() == pytest.approx(0.5)


def test_the_mismatch_of_engine_and_learner_is_that_of_sampled_tokens() -> None:
    step = Step(6)
    tally = MismatchTally(OffPolicySettings())
    batch = flatten(
        GRAO,
        torch.from_numpy(step.counts),
        step.columns(GRAO),
        Denominators(1.0, 1.0),
        behaviour_T=torch.from_numpy(step.behaviour),
        same_version_T=torch.ones(len(step.logprobs), dtype=torch.bool),
    )
    tally.add(batch, torch.from_numpy(step.logprobs))
    gaps = np.abs(step.logprobs - step.behaviour)
    figures = tally.figures(alone, 0, 1)
    assert figures["mismatch/same_version/tokens"] == (~np.isnan(gaps)).sum()
    assert figures["mismatch/same_version/gap_mean"] == pytest.approx(np.nanmean(gaps))
    assert figures["mismatch/same_version/gap_max"] == pytest.approx(np.nanmax(gaps))


def test_a_correction_weighs_the_plain_loss() -> None:
    """`-w A log p` with w = proximal / behaviour, at most 1.1, in a loop."""
    settings = dataclasses.replace(
        REMAX, kl=KlSettings(), off_policy=OffPolicySettings("truncate", "token", None, 1.1)
    )
    behaviour, proximal, now = [-1.0, -2.0], [-1.5, -1.0], [-1.2, -0.7]
    batch = flatten(
        settings,
        torch.tensor([2]),
        {"advantage": torch.tensor([3.0]).double(), "keep": torch.ones(1).double()},
        Denominators(2.0, 1.0),
        behaviour_T=torch.tensor(behaviour).double(),
        proximal_T=torch.tensor(proximal).double(),
    )
    logprob_T = torch.tensor(now).double().requires_grad_()
    terms = Objective(settings).loss(batch, {"logprob": logprob_T})
    weights = [min(1.1, math.exp(p - b)) for p, b in zip(proximal, behaviour, strict=True)]
    wanted = sum(-w * 3 * p for w, p in zip(weights, now, strict=True)) / 2
    assert terms.loss.item() == pytest.approx(wanted)
    assert float(terms.sums["weight_mean"]) == pytest.approx(sum(weights) / 2)
    (gradient,) = torch.autograd.grad(terms.loss, logprob_T)
    assert gradient.tolist() == pytest.approx([-w * 3 / 2 for w in weights])


def test_filters_choose_samples_and_look_at_the_companion_where_it_teaches() -> None:
    rewards_N = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    group_N = torch.tensor([0, 0, 0, 1, 1, 1])
    is_companion_N = torch.tensor([False, False, True] * 2)
    zero = dataclasses.replace(GRAO, filters=(FilterSettings("zero_variance"),))
    stage = group_stage(zero, rewards_N, group_N, is_companion_N=is_companion_N)
    assert stage.filtered == {1: "zero_variance"}
    assert stage.coefficients["keep"].tolist() == [1, 1, 1, 0, 0, 0]
    # By the samples alone: the answer is right, and none of them is
    band = dataclasses.replace(GRAO, filters=(FilterSettings("accuracy_band", low=0.3),))
    parts = {"correct": torch.tensor([0.0, 0.0, math.nan, 1.0, 0.0, math.nan])}
    stage = group_stage(band, rewards_N, group_N, None, None, parts, is_companion_N)
    assert stage.filtered == {0: "accuracy_band"}
    two = dataclasses.replace(GRAO, filters=(FilterSettings("max_variance", keep=2),))
    rewards_N = torch.tensor([0.5, 0.0, 1.0, 9.0])
    stage = group_stage(two, rewards_N, torch.zeros(4).long(), is_companion_N=torch.arange(4) == 3)
    assert stage.coefficients["keep"].tolist() == [0, 1, 1, 1]
    chosen = ADVANTAGES["alignment"](
        two,
        StepRewards(rewards_N[1:], torch.zeros(3).long(), torch.ones(3), {}, torch.arange(3) == 2),
    )
    torch.testing.assert_close(stage.coefficients["advantage"][1:], chosen.float())


def of(name: str, **changes: object) -> AlgorithmSettings:
    return dataclasses.replace(PRESETS[name], **changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (of("remax", companion="none"), "greedy_baseline needs a greedy answer beside the samples"),
        (of("remax", companion="given"), "greedy_baseline needs a greedy .* companion is given"),
        (of("grao", companion="none"), "alignment needs a given answer beside .* set it to given"),
        (of("grpo", companion="greedy"), "group_relative does not read it: .* greedy_baseline"),
        (of("rloo", companion="given"), "set advantage to group_relative or alignment"),
        (
            of("online_dpo", companion="greedy"),
            "companion is greedy, but pairs is best_worst, of which it is none: remove it, or set",
        ),
        (
            of("kto", samples_from="policy", reference_point="samples", companion="greedy"),
            "the loss kto has no use for a row beside the samples",
        ),
        (of("grpo", companion="written"), "the loss clipped_surrogate compares none: .* to xpo"),
        (of("kto", companion="written"), "the loss kto compares none: remove it, or set loss to"),
        (of("xpo", companion="given"), "companion is given: set it to written"),
        (
            of("xpo", companion="none"),
            "pairs is companion, .* companion is none: set it to written",
        ),
        (of("xpo", pairs="all"), "pairs is all, and the loss xpo compares samples with those of"),
        (of("xpo", exploration_coef=-1e-5), "exploration_coef is -1e-05, it must be 0 or more"),
        (of("xpo", exploration_coef=math.nan), "exploration_coef is nan, it must be 0 or more"),
        (of("online_dpo", exploration_coef=0.1), "exploration_coef is 0.1 but loss is dpo"),
        (of("xpo", samples_from="given"), "companion is written, .* and samples_from is given"),
        (of("xpo", length_normalized=True), "length_normalized is True but loss is xpo, which"),
        (of("sft", companion="given"), "companion is given, .* and samples_from is given"),
        (of("grao", loss="clipped_surrogate"), "a ratio to .* set loss to policy_gradient"),
        (
            of("grao", proximal="learner", off_policy=OffPolicySettings("weight")),
            "off_policy.correction is weight, which weighs tokens by the log-probs of whoever did",
        ),
        (of("grao", kl=KlSettings(0.1)), "tokens that the policy sampled: set kl.coef to 0"),
        (of("grao", whiten_advantages=True), "whiten_advantages would measure the given answer"),
        (of("grao", imitation_coef=-1.0), "imitation_coef is -1.0, it must be 0 or more"),
        (of("grpo", alignment_coef=0.1), "alignment_coef is 0.1 but advantage is group_relative"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: AlgorithmSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(settings)


def test_sound_ones_pass() -> None:
    check(of("remax", filters=(FilterSettings("zero_variance"),)))
    check(of("remax", samples_per_prompt=4, loss="clipped_surrogate", kl=KlSettings()))
    check(of("grao", advantage="group_relative", entropy_coef=0.01))
    check(of("xpo", samples_per_prompt=4, exploration_coef=0.0, unit="group", pair_margin=0.1))
    for name in ("online_dpo", "ipo", "simpo"):
        check(of(name, samples_from="policy", pairs="companion", companion="written"))
    assert (REMAX.rows_per_prompt, REMAX.trained_rows) == (2, 1)
    assert (GRAO.rows_per_prompt, GRAO.trained_rows) == (9, 9)
