"""The divergence from a teacher by plain loops, by finite differences, and as part of the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms.aggregate import Denominators
from manta.algorithms.contradictions import check
from manta.algorithms.flatten import flatten
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import KlSettings, OffPolicySettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.teacher_kl import figures, teacher_kl
from manta.algorithms.teacher_settings import TeacherSettings
from manta.algorithms.tokens import TokenBatch

WORDS, TOKENS = 6, 5
INTERPOLATIONS = (0.0, 0.3, 0.5, 0.9, 1.0)


def logits(seed: int) -> Tensor:
    return 1.5 * torch.randn(
        TOKENS, WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def by_loops(b: float, teacher: list[float], policy: list[float]) -> float:
    """Of one token, from probabilities."""

    def kl(p: list[float], q: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)

    if b == 0:
        return kl(teacher, policy)
    if b == 1:
        return kl(policy, teacher)
    mixture = [b * p + (1 - b) * q for p, q in zip(teacher, policy, strict=True)]
    return b * kl(teacher, mixture) + (1 - b) * kl(policy, mixture)


def lumped(logp_TV: Tensor, ids_TK: Tensor) -> Tensor:
    """Log-probs of the words `ids_TK`, and last of all others together."""
    rest_TV = logp_TV.exp().scatter(1, ids_TK, 0.0)
    rest_T1 = rest_TV.sum(1, keepdim=True).clamp(min=1e-30).log()
    return torch.cat([logp_TV.gather(1, ids_TK), rest_T1], 1)


@pytest.mark.parametrize("k", [1, 3, WORDS])
@pytest.mark.parametrize("b", INTERPOLATIONS)
def test_by_loops(b: float, k: int) -> None:
    teacher_TV, policy_TV = logits(0).log_softmax(-1), logits(1).log_softmax(-1)
    ids_TK = teacher_TV.topk(k).indices
    found = teacher_kl(b, lumped(teacher_TV, ids_TK), lumped(policy_TV, ids_TK))
    for t in range(TOKENS):
        chosen = ids_TK[t].tolist()
        p, q = ([float(each[t, v].exp()) for v in chosen] for each in (teacher_TV, policy_TV))
        if k < WORDS:
            p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        assert float(found[t]) == pytest.approx(by_loops(b, p, q), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("b", INTERPOLATIONS)
def test_the_whole_vocabulary_gives_the_exact_divergence_and_fewer_words_never_more(
    b: float,
) -> None:
    teacher_TV, policy_TV = logits(2).log_softmax(-1), logits(3).log_softmax(-1)
    exact_T = teacher_kl(b, teacher_TV, policy_TV)
    before_T = torch.zeros(TOKENS, dtype=torch.float64)
    for k in range(1, WORDS + 1):
        ids_TK = teacher_TV.topk(k).indices
        found_T = teacher_kl(b, lumped(teacher_TV, ids_TK), lumped(policy_TV, ids_TK))
        assert bool((found_T >= before_T - 1e-12).all())
        before_T = found_T
    torch.testing.assert_close(before_T, exact_T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("b", INTERPOLATIONS)
def test_the_gradient_by_finite_differences(b: float) -> None:
    teacher_TV = logits(4).log_softmax(-1)
    ids_TK = teacher_TV.topk(2).indices
    teacher_TK = lumped(teacher_TV, ids_TK)

    def loss(policy_TV: Tensor) -> Tensor:
        return teacher_kl(b, teacher_TK, lumped(policy_TV.log_softmax(-1), ids_TK)).sum()

    assert torch.autograd.gradcheck(loss, logits(5).requires_grad_())


def test_towards_its_ends_the_interpolation_is_either_kl() -> None:
    teacher_TV, policy_TV = logits(6).log_softmax(-1), logits(7).log_softmax(-1)
    for b, end, share in ((1e-6, 0.0, 1e-6), (1 - 1e-6, 1.0, 1e-6)):
        near_T = teacher_kl(b, teacher_TV, policy_TV) / share
        torch.testing.assert_close(
            near_T, teacher_kl(end, teacher_TV, policy_TV), rtol=1e-4, atol=0
        )


def test_figures_are_both_directions_and_masses() -> None:
    teacher_TV, policy_TV = logits(8).log_softmax(-1), logits(9).log_softmax(-1).requires_grad_()
    ids_TK = teacher_TV.topk(2).indices
    teacher_TK, policy_TK = lumped(teacher_TV, ids_TK), lumped(policy_TV, ids_TK)
    found = figures(teacher_TK, policy_TK)
    torch.testing.assert_close(found["teacher_top_mass"], teacher_TK[:, :2].exp().sum(1))
    torch.testing.assert_close(found["policy_top_mass"], policy_TK[:, :2].exp().sum(1).detach())
    assert not any(each.requires_grad for each in found.values())
    assert not torch.allclose(found["teacher_kl_forward"], found["teacher_kl_reverse"])


SETTINGS = replace(
    PRESETS["topk_distillation"], teacher=TeacherSettings(2, 0.5), aggregation="sequence_mean"
)


def batch_of(teacher_TK: Tensor | None, keep: list[float]) -> TokenBatch:
    """Rows of 3 and of 2 tokens."""
    tokens_R = torch.tensor([3, 2])
    columns = {
        "advantage": torch.zeros(2),
        "weight": torch.tensor([1.0, 2.0]),
        "keep": torch.tensor(keep),
    }
    rows = float(sum(k * w for k, w in zip(keep, (1.0, 2.0), strict=True)))
    tokens = float(sum(k * w * n for k, w, n in zip(keep, (1.0, 2.0), (3, 2), strict=True)))
    weight_T = None if teacher_TK is None else torch.tensor([1.0, 2, 3, 4, 5])
    return flatten(
        SETTINGS,
        tokens_R,
        columns,
        Denominators(tokens, rows),
        reference_T=torch.zeros(TOKENS),
        teacher_TK=teacher_TK,
        teacher_weight_T=weight_T,
    )


def test_the_loss_is_the_weighted_mean_of_the_divergence() -> None:
    teacher_TV, policy_TV = logits(10).log_softmax(-1), logits(11).log_softmax(-1)
    ids_TK = teacher_TV.topk(2).indices
    teacher_TK, policy_TK = lumped(teacher_TV, ids_TK), lumped(policy_TV, ids_TK)
    batch = batch_of(teacher_TK, [1.0, 1.0])
    stats = {"logprob": policy_TV[:, 0], "likeliest": policy_TK}
    terms = Objective(SETTINGS).loss(batch, stats)
    each = [
        n * by_loops(0.5, teacher_TK[t].exp().tolist(), policy_TK[t].exp().tolist())
        for t, n in enumerate((1, 2, 3, 4, 5))
    ]
    wanted = (sum(each[:3]) / 3 + 2 * sum(each[3:]) / 2) / 3
    assert float(terms.loss) == pytest.approx(wanted, rel=1e-6)
    assert float(terms.sums["loss"]) == pytest.approx(wanted, rel=1e-6)
    assert terms.sums["teacher_kl_forward"] > 0


def test_tokens_that_do_not_count_teach_nothing() -> None:
    teacher_TV = logits(12).log_softmax(-1)
    ids_TK = teacher_TV.topk(2).indices
    policy_TV = logits(13).requires_grad_()
    policy_TK = lumped(policy_TV.log_softmax(-1), ids_TK)
    spoilt_TK = torch.where(torch.arange(TOKENS)[:, None] < 3, policy_TK, -torch.inf)
    batch = batch_of(lumped(teacher_TV, ids_TK), [1.0, 0.0])
    terms = Objective(SETTINGS).loss(batch, {"logprob": policy_TK[:, 0], "likeliest": spoilt_TK})
    (gradient,) = torch.autograd.grad(terms.loss, policy_TV)
    assert math.isfinite(float(terms.loss.detach())) and bool(gradient[:3].any(1).all())
    assert not gradient[3:].any()


def test_without_a_teacher_there_is_nothing_to_learn_from() -> None:
    stats = {"logprob": torch.zeros(TOKENS), "likeliest": torch.zeros(TOKENS, 3)}
    with pytest.raises(ValueError, match="needs the tokens that the reference finds likely"):
        Objective(SETTINGS).loss(batch_of(None, [1.0, 1.0]), stats)
    with pytest.raises(ValueError, match=r"teacher_TK has shape \(4, 3\)"):
        batch_of(torch.zeros(4, 3), [1.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": TeacherSettings(top_k=0)}, "teacher.top_k is 0"),
        ({"teacher": TeacherSettings(interpolation=1.5)}, "teacher.interpolation is 1.5"),
        ({"teacher": TeacherSettings(interpolation=np.nan)}, "teacher.interpolation is nan"),
        ({"advantage": "group_relative"}, "reads no rewards and advantage is group_relative"),
        ({"kl": KlSettings(0.1)}, "kl.coef is 0.1, an estimate of the same"),
        ({"whiten_advantages": True}, "no use for `whiten_advantages`"),
        ({"proximal": "learner"}, "no use for `proximal: learner`"),
        (
            {"proximal": "learner", "off_policy": OffPolicySettings("truncate", high=2.0)},
            "no use for `off_policy`",
        ),
        ({"loss": "clipped_surrogate", "kl": KlSettings(1.0), "teacher": TeacherSettings(3)},
         "set loss to teacher_kl"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    settings: AlgorithmSettings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        check(settings)


def test_presets_take_the_reverse_kl_over_distributions() -> None:
    for name, samples, mean in (
        ("topk_distillation", 4, "token_mean"),
        ("align_distil", 1, "sequence_mean"),
    ):
        preset = PRESETS[name]
        assert (preset.loss, preset.teacher.interpolation) == ("teacher_kl", 1.0)
        assert (preset.samples_per_prompt, preset.aggregation) == (samples, mean)
        assert preset.needs_reference and not preset.reads_rewards
