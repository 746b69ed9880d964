"""The token stage: KL in the reward and whitening, on one rank and on several."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import denominators, row_weight
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_stage import WHITEN_EPSILON, token_rewards, token_stage, whiten
from manta.algorithms.tokens import TokenBatch
from tests.unit.algorithms.rank_threads import on_ranks

KL_IN_REWARD = dataclasses.replace(
    PRESETS["reinforce"], kl=KlSettings(coef=0.5, estimator="k1", placement="reward")
)
COUNTS = [3, 0, 1, 2]
BEHAVIOUR_T = torch.tensor([-1.0, -2.0, -1.0, -3.0, -0.5, -1.0], dtype=torch.float64)
REFERENCE_T = torch.tensor([-2.0, -1.0, -1.5, -3.0, -0.25, -3.0], dtype=torch.float64)


class Alone:
    """The sum over one rank; counts how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, moments: Tensor) -> Tensor:
        self.calls += 1
        return moments


def batch_of(
    settings: AlgorithmSettings, advantage: list[float], with_reference: bool = True
) -> TokenBatch:
    coefficients = {
        "advantage": torch.tensor(advantage, dtype=torch.float64),
        "keep": torch.ones(len(advantage), dtype=torch.float64),
    }
    counts_R = torch.tensor(COUNTS)
    return flatten(
        settings,
        counts_R,
        coefficients,
        denominators(counts_R, row_weight(coefficients)),
        behaviour_T=BEHAVIOUR_T,
        reference_T=REFERENCE_T if with_reference else None,
    )


def test_grpo_with_kl_in_the_loss_is_the_identity() -> None:
    batch, alone = batch_of(PRESETS["grpo"], [1.0, 2.0, 3.0, 4.0]), Alone()
    result = token_stage(PRESETS["grpo"], batch, alone)
    assert result.advantage_T.tolist() == [1.0, 1.0, 1.0, 3.0, 4.0, 4.0]
    assert torch.equal(result.advantage_T, batch.advantage_T)
    assert alone.calls == 0


def test_token_rewards_by_hand() -> None:
    rewards_T = token_rewards(
        torch.tensor([10.0, 20.0, 30.0, 40.0]),
        torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        torch.tensor([0, 0, 0, 2, 3, 3]),
        coef=0.5,
    )
    assert rewards_T.tolist() == [-0.5, -1.0, 8.5, 28.0, -2.5, 37.0]


def test_kl_in_the_reward_is_charged_over_the_rest_of_the_row() -> None:
    batch = batch_of(KL_IN_REWARD, [1.0, 2.0, 3.0, 4.0])
    # k1 per token: 1, -1, 0.5 | 0 | -0.25, 2; times 0.5, summed to the row's end.
    expected = [1 - 0.25, 1 + 0.25, 1 - 0.25, 3.0, 4 - 0.875, 4 - 1.0]
    result = token_stage(KL_IN_REWARD, batch, Alone())
    assert result.advantage_T.tolist() == pytest.approx(expected)
    again = token_stage(KL_IN_REWARD, result, Alone())
    assert torch.equal(again.advantage_T, result.advantage_T)


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_the_kl_of_later_tokens_is_discounted(discount: float) -> None:
    charge = dataclasses.replace(KL_IN_REWARD.kl, discount=discount)
    settings = dataclasses.replace(KL_IN_REWARD, kl=charge)
    result = token_stage(settings, batch_of(settings, [1.0, 2.0, 3.0, 4.0]), Alone())
    kl_by_row, expected = [[1.0, -1.0, 0.5], [], [0.0], [-0.25, 2.0]], []
    for advantage, kl in zip([1.0, 2.0, 3.0, 4.0], kl_by_row, strict=True):
        for t in range(len(kl)):
            later = sum(discount ** (s - t) * kl[s] for s in range(t, len(kl)))
            expected.append(advantage - 0.5 * later)
    assert result.advantage_T.tolist() == pytest.approx(expected)


def test_distillation_follows_the_teacher_at_each_token_alone() -> None:
    """No reward enters: the advantage is log teacher - log student, whatever the rows' is."""
    distillation = PRESETS["distillation"]
    result = token_stage(distillation, batch_of(distillation, [0.0] * 4), Alone())
    torch.testing.assert_close(result.advantage_T, REFERENCE_T - BEHAVIOUR_T)
    infinite = dataclasses.replace(
        batch_of(distillation, [0.0] * 4),
        reference_T=torch.tensor([-2.0, -1.0, -torch.inf, -3.0, -0.25, -3.0]).double(),
    )
    found = token_stage(distillation, infinite, Alone()).advantage_T
    assert found.isfinite().tolist() == [True, True, False, True, True, True]


def test_the_gradient_of_distillation_is_that_of_the_reverse_kl() -> None:
    """In expectation over the student's own tokens, all of a vocabulary of 7 by their chance."""
    generator = torch.Generator().manual_seed(0)
    logits_V, teacher_V = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    teacher_V = teacher_V.log_softmax(-1)
    logits_V.requires_grad_()
    student_V = logits_V.log_softmax(-1)
    (wanted_V,) = torch.autograd.grad(
        (student_V.exp() * (student_V - teacher_V)).sum(), logits_V, retain_graph=True
    )
    settings, old_V = PRESETS["distillation"], student_V.detach()
    # Rows of one token each, every word as often as the student says it
    columns = {"advantage": torch.zeros(7).double(), "weight": old_V.exp()}
    ones_R = torch.ones(7, dtype=torch.int64)
    batch = flatten(
        settings,
        ones_R,
        columns,
        denominators(ones_R, row_weight(columns)),
        behaviour_T=old_V,
        reference_T=teacher_V,
    )
    staged = token_stage(settings, batch, Alone())
    loss = Objective(settings).loss(staged, {"logprob": student_V}).loss
    (found_V,) = torch.autograd.grad(loss, logits_V)
    torch.testing.assert_close(found_V, wanted_V, rtol=1e-10, atol=1e-12)
    assert wanted_V.abs().max() > 1e-2


def test_kl_in_the_reward_prefers_the_recomputed_log_probs() -> None:
    batch = batch_of(KL_IN_REWARD, [1.0, 2.0, 3.0, 4.0])
    batch = dataclasses.replace(batch, proximal_T=REFERENCE_T)
    assert token_stage(KL_IN_REWARD, batch, Alone()).advantage_T.tolist() == pytest.approx(
        [1.0, 1.0, 1.0, 3.0, 4.0, 4.0]
    )


def test_kl_in_the_reward_needs_a_reference() -> None:
    batch = batch_of(KL_IN_REWARD, [1.0, 2.0, 3.0, 4.0], with_reference=False)
    with pytest.raises(ValueError, match="KL in the reward needs log-probs"):
        token_stage(KL_IN_REWARD, batch, Alone())


def test_whitened_advantages_have_mean_zero_and_variance_one() -> None:
    settings = dataclasses.replace(KL_IN_REWARD, whiten_advantages=True)
    alone = Alone()
    result = token_stage(settings, batch_of(settings, [1.0, 2.0, 3.0, 4.0]), alone).advantage_T
    assert alone.calls == 1
    assert result.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert result.var(correction=0).item() == pytest.approx(1.0, rel=1e-6)


def test_whiten_matches_weighted_numpy_moments() -> None:
    generator = np.random.default_rng(3)
    values, weight = generator.normal(5, 2, 30), generator.integers(0, 3, 30).astype(float)
    mean = np.average(values, weights=weight)
    variance = np.average((values - mean) ** 2, weights=weight)
    expected = np.where(weight > 0, (values - mean) / np.sqrt(variance + WHITEN_EPSILON), np.nan)
    result = whiten(torch.from_numpy(values), torch.from_numpy(weight), Alone()).numpy()
    np.testing.assert_allclose(result[weight > 0], expected[weight > 0], rtol=1e-11)


def test_tokens_of_weight_zero_do_not_enter_the_moments() -> None:
    values, weight = torch.tensor([1.0, 3.0, float("inf")]), torch.tensor([1.0, 1.0, 0.0])
    result = whiten(values, weight, Alone())
    torch.testing.assert_close(result[:2], torch.tensor([-1.0, 1.0]))
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("size", [0, 1, 5])
def test_whitening_equal_values_gives_zero(size: int) -> None:
    result = whiten(torch.full((size,), 0.1), torch.ones(size), Alone())
    torch.testing.assert_close(result, torch.zeros(size), rtol=0, atol=1e-6)


def test_nothing_kept_anywhere_stays_finite() -> None:
    result = whiten(torch.tensor([1.0, 2.0]), torch.zeros(2), Alone())
    assert torch.isfinite(result).all()


def test_ranks_whiten_as_one_process_would() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(40, generator=generator) * 3 + 1
    weight = torch.randint(0, 3, (40,), generator=generator).float()
    together = whiten(values, weight, Alone())
    shares = [slice(0, 5), slice(5, 5), slice(5, 40)]  # one rank has no token at all
    results = on_ranks(shares, lambda part, total: whiten(values[part], weight[part], total))
    torch.testing.assert_close(torch.cat(results), together, rtol=1e-6, atol=1e-7)
