"""The same advantages, losses, means and KL as verl, through verl's own `core_algos`.

verl is installed by `make test`; without it these tests skip. What differs has a name:

- Normalising over n tokens it divides by the unbiased deviation, we by the population's: ours are
  larger by sqrt(n / (n - 1)). Its `gae` always does (`whiten_advantages`); its `gdpo` normalises
  over tokens, ours over rows, and over tokens with `whiten_advantages`.
- A sample alone in its group keeps its reward there (`grpo`, `rloo`, `opo`), and has advantage 0
  here: there is nothing to compare it with.
- `vanilla` always has a dual clip (`dual_clip`). Log-ratios are clamped to 20 and k3 to 10 there,
  nothing is here. `gpg` is `policy_gradient`.
- `clip_cov` and `kl_cov` choose tokens out of one micro-batch by the policy as it is now, ours out
  of the step by that at its start. `kl_cov` takes the absolute log-ratio
  (`covariance.estimator: absolute`), ours a KL.
- Its KL controller has a horizon in samples: `kl.gain` is the samples of a step over that.

Not here is what we have not: `gpg`'s advantage, `grpo_passk` (arXiv 2503.19595), the
optimal token baselines, `dppo`, `dro`, sums over tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.algorithms import kl
from manta.algorithms.advantages import ADVANTAGES, StepRewards
from manta.algorithms.aggregate import Denominators, denominators, token_weights
from manta.algorithms.flatten import flatten
from manta.algorithms.kl_control import KlControl
from manta.algorithms.objective import Objective
from manta.algorithms.part_settings import CovarianceSettings, KlSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.token_choice import tickets
from manta.algorithms.token_stage import token_rewards, token_stage
from manta.algorithms.values import value_loss

core_algos = pytest.importorskip(
    "verl.trainer.ppo.core_algos",
    reason="verl is not installed: make test installs it",
    exc_type=ImportError,
)

COUNTS = [5, 2, 7, 1, 3, 6, 4, 2, 5]
GROUPS = [0, 0, 0, 1, 1, 2, 2, 2, 2]
WIDTH = 7
COUNTS_R = torch.tensor(COUNTS)
MASK_BT = (torch.arange(WIDTH) < COUNTS_R[:, None]).double()
AT_BT = MASK_BT.bool()
NUM_TOKENS = sum(COUNTS)
BESSEL = (NUM_TOKENS / (NUM_TOKENS - 1)) ** 0.5


def alone(values: Tensor) -> Tensor:
    return values


class Samples:
    """Log-probs of ragged rows under four policies, values, rewards and their parts."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.old_BT, self.now_BT, self.reference_BT = normal(3, len(COUNTS), WIDTH) * 0.4 - 2
        self.values_BT, self.new_values_BT = normal(2, len(COUNTS), WIDTH)
        # Eighths, which verl may round to float32
        self.rewards_B, self.format_B = (8 * normal(2, len(COUNTS))).round() / 8
        self.advantage_B = normal(len(COUNTS))

    @property
    def step(self) -> StepRewards:
        parts = {"right": self.rewards_B, "format": self.format_B}
        return StepRewards(self.rewards_B, torch.tensor(GROUPS), COUNTS_R, parts)

    @property
    def scores_BT(self) -> Tensor:
        """The reward on each row's last token."""
        scores_BT = torch.zeros(len(COUNTS), WIDTH, dtype=torch.float64)
        scores_BT[torch.arange(len(COUNTS)), COUNTS_R - 1] = self.rewards_B
        return scores_BT


def advantages(settings: AlgorithmSettings, samples: Samples) -> tuple[Tensor, Tensor | None]:
    """Ours, and returns, [T] each."""
    columns = {
        "advantage": ADVANTAGES[settings.advantage](settings, samples.step),
        "keep": torch.ones(len(COUNTS), dtype=torch.float64),
    }
    batch = flatten(
        settings,
        COUNTS_R,
        columns,
        Denominators(1.0, 1.0),
        samples.old_BT[AT_BT],
        None,
        samples.reference_BT[AT_BT],
        value_T=samples.values_BT[AT_BT],
    )
    staged = token_stage(settings, batch, alone)
    return staged.advantage_T, staged.return_T


BY_GROUP = {
    "grpo": ("grpo", PRESETS["grpo"]),
    "grpo_vectorized": ("grpo_vectorized", PRESETS["grpo"]),
    "grpo without deviation": ("grpo", PRESETS["dr_grpo"]),
    "rloo": ("rloo", replace(PRESETS["rloo"], kl=KlSettings())),
    "rloo_vectorized": ("rloo_vectorized", replace(PRESETS["rloo"], kl=KlSettings())),
    "opo": ("opo", PRESETS["opo"]),
}


@pytest.mark.parametrize("name", list(BY_GROUP))
def test_group_advantages_equal_verl(name: str) -> None:
    samples, (estimator, settings) = Samples(), BY_GROUP[name]
    told = {"norm_adv_by_std_in_grpo": settings.divide_by_std} if "grpo" in estimator else {}
    theirs, _ = core_algos.get_adv_estimator_fn(estimator)(
        token_level_rewards=samples.scores_BT,
        response_mask=MASK_BT,
        index=np.array(GROUPS),
        **told,
    )
    ours, _ = advantages(settings, samples)
    torch.testing.assert_close(ours, theirs[AT_BT].double(), rtol=1e-6, atol=1e-7)
    assert ours.unique().numel() >= len(COUNTS) // 2


def test_reinforce_plus_plus_baseline_equals_verl() -> None:
    samples = Samples()
    theirs, _ = core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage(
        samples.scores_BT, MASK_BT, np.array(GROUPS)
    )
    ours, _ = advantages(PRESETS["reinforce_plus_plus_baseline"], samples)
    torch.testing.assert_close(ours, theirs[AT_BT] * BESSEL, rtol=1e-7, atol=1e-7)


def test_reinforce_plus_plus_with_its_kl_equals_verl() -> None:
    samples = Samples()
    rewards_BT = core_algos.compute_rewards(
        samples.scores_BT, samples.old_BT, samples.reference_BT, 0.01
    )
    theirs, _ = core_algos.compute_reinforce_plus_plus_outcome_advantage(
        rewards_BT * MASK_BT, MASK_BT, config=core_algos.AlgoConfig(gamma=1.0)
    )
    ours, _ = advantages(PRESETS["reinforce_plus_plus"], samples)
    torch.testing.assert_close(ours, theirs[AT_BT] * BESSEL, rtol=1e-7, atol=1e-7)
    assert PRESETS["reinforce_plus_plus"].kl.coef == 0.01


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0)])
def test_gae_equals_verl(gamma: float, lam: float) -> None:
    samples = Samples()
    settings = replace(PRESETS["ppo"], gamma=gamma, gae_lambda=lam)
    rewards_BT = core_algos.compute_rewards(
        samples.scores_BT, samples.old_BT, samples.reference_BT, settings.kl.coef
    )
    theirs, their_returns = core_algos.compute_gae_advantage_return(
        rewards_BT * MASK_BT, samples.values_BT, MASK_BT, gamma, lam
    )
    row_T = torch.repeat_interleave(torch.arange(len(COUNTS)), COUNTS_R)
    kl_T = (samples.old_BT - samples.reference_BT)[AT_BT]
    torch.testing.assert_close(
        token_rewards(samples.rewards_B, kl_T, row_T, settings.kl.coef), rewards_BT[AT_BT]
    )
    ours, our_returns = advantages(settings, samples)
    torch.testing.assert_close(our_returns, their_returns[AT_BT], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, theirs[AT_BT] * BESSEL, rtol=1e-7, atol=1e-7)


def test_gdpo_normalised_over_tokens_equals_verl() -> None:
    samples = Samples()
    settings = replace(
        PRESETS["gdpo"], component_weights={"right": 1.0, "format": 0.5}, whiten_advantages=True
    )
    prompts = torch.zeros(len(COUNTS), 1)
    theirs, _ = core_algos.compute_gdpo_outcome_advantage(
        samples.scores_BT,
        MASK_BT,
        np.array(GROUPS),
        config=core_algos.AlgoConfig(
            gdpo_reward_keys=["right", "format"], gdpo_reward_weights=[1.0, 0.5]
        ),
        non_tensor_batch={
            "right": samples.rewards_B.numpy(),
            "format": samples.format_B.numpy(),
        },
        batch={"prompts": prompts, "attention_mask": torch.cat([prompts + 1, MASK_BT], 1).long()},
    )
    ours, _ = advantages(settings, samples)
    torch.testing.assert_close(ours, theirs[AT_BT].double() * BESSEL, rtol=1e-6, atol=1e-6)


def test_remax_equals_verl() -> None:
    """Its baselines are rewards of greedy answers, ours those of the groups' companions."""
    samples = Samples()
    greedy_G = samples.format_B[:3]
    theirs, _ = core_algos.compute_remax_outcome_advantage(
        samples.scores_BT, greedy_G[GROUPS], MASK_BT
    )
    step = StepRewards(
        torch.cat([samples.rewards_B, greedy_G]),
        torch.tensor([*GROUPS, 0, 1, 2]),
        torch.cat([COUNTS_R, torch.ones(3, dtype=torch.int64)]),
        {},
        torch.tensor([False] * len(COUNTS) + [True] * 3),
    )
    ours = ADVANTAGES["greedy_baseline"](PRESETS["remax"], step)[: len(COUNTS)]
    torch.testing.assert_close(ours.repeat_interleave(COUNTS_R), theirs[AT_BT])


def test_a_sample_alone_keeps_its_reward_there_and_has_no_advantage_here() -> None:
    samples = Samples()
    step = samples.step._replace(group_N=torch.arange(len(COUNTS)))
    for name, settings in (("grpo", PRESETS["dr_grpo"]), ("opo", PRESETS["opo"])):
        told = {"norm_adv_by_std_in_grpo": False} if name == "grpo" else {}
        theirs, _ = core_algos.get_adv_estimator_fn(name)(
            samples.scores_BT, MASK_BT, np.arange(len(COUNTS)), **told
        )
        torch.testing.assert_close(theirs[:, 0], samples.rewards_B)
        assert not ADVANTAGES[settings.advantage](settings, step).any()


def actor(**told: object) -> object:
    """verl's settings of a policy."""
    return core_algos.ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **told
    )


@dataclass(frozen=True)
class Told:
    """What verl is told, and what we are."""

    mode: str
    theirs: dict[str, object]
    ours: dict[str, object]
    aggregation: str = "token-mean"


def covariances(**told: object) -> object:
    from verl.workers.config import PolicyLossConfig

    return PolicyLossConfig(**told)


CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
OURS = {"clip_low": 0.2, "clip_high": 0.28}
MEANS = {
    "token-mean": {"aggregation": "token_mean"},
    "seq-mean-token-mean": {"aggregation": "sequence_mean"},
    "seq-mean-token-sum": {"aggregation": "sequence_sum_constant", "constant_length": 1},
    "seq-mean-token-sum-norm": {"aggregation": "sequence_sum_constant", "constant_length": 11},
}
"""verl's means, and ours."""

CASES: dict[str, Callable[[], Told]] = {
    **{
        f"vanilla, {mean}": lambda mean=mean, ours=ours: Told(  # type: ignore[misc]
            "vanilla",
            {**CLIP, "clip_ratio_c": 1e9},
            {**OURS, **ours},
            mean,
        )
        for mean, ours in MEANS.items()
    },
    "dual clip": lambda: Told("vanilla", {**CLIP, "clip_ratio_c": 1.5}, {**OURS, "dual_clip": 1.5}),
    "gspo": lambda: Told(
        "gspo",
        {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1},
        {"loss": "gspo", "clip_low": 0.05, "clip_high": 0.1, "aggregation": "sequence_mean"},
        "seq-mean-token-mean",
    ),
    "gspo_token, tokens": lambda: Told(
        "gspo",
        {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1},
        {"loss": "gspo_token", "clip_low": 0.05, "clip_high": 0.1},
    ),
    "geo_mean": lambda: Told(
        "geo_mean",
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.1},
        {"loss": "gmpo", "clip_low": 0.2, "clip_high": 0.1, "aggregation": "sequence_mean"},
    ),
    "gpg": lambda: Told("gpg", {}, {"loss": "policy_gradient"}),
    "cispo": lambda: Told("cispo", CLIP, {"loss": "cispo", **OURS}),
    "sapo": lambda: Told(
        "sapo",
        {"tau_pos": 1.0, "tau_neg": 1.25},
        {"loss": "sapo", "tau_negative": 1.25, "aggregation": "sequence_mean"},
        "seq-mean-token-mean",
    ),
    "clip_cov": lambda: Told(
        "clip_cov",
        # All that lie between, so that no draw decides
        {
            "clip_ratio_low": 1.0,
            "clip_ratio_high": 9.0,
            "policy_loss": covariances(
                clip_cov_ratio=1.0, clip_cov_lb=0.1, clip_cov_ub=0.5, loss_mode="clip_cov"
            ),
        },
        {
            "loss": "clip_cov",
            "clip_low": 1.0,
            "clip_high": 9.0,
            "covariance": CovarianceSettings(1.0, 0.1, 0.5),
        },
    ),
    "kl_cov": lambda: Told(
        "kl_cov",
        {"policy_loss": covariances(kl_cov_ratio=0.2, ppo_kl_coef=0.7, loss_mode="kl_cov")},
        {
            "loss": "kl_cov",
            "covariance": CovarianceSettings(0.2, coef=0.7, estimator="absolute"),
        },
    ),
}


def both(
    told: Told, samples: Samples, now_BT: Tensor, old_BT: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Loss and gradient by the current log-probs, ours and theirs."""
    config = actor(**told.theirs)
    if told.aggregation == "seq-mean-token-sum-norm":
        config.global_batch_info["loss_scale_factor"] = 11  # type: ignore[attr-defined]
    now_BT = now_BT.clone().requires_grad_()
    expected, _ = core_algos.get_policy_loss_fn(told.mode)(
        old_log_prob=old_BT,
        log_prob=now_BT,
        advantages=samples.advantage_B[:, None].expand_as(old_BT).contiguous(),
        response_mask=MASK_BT,
        loss_agg_mode=told.aggregation,
        config=config,
    )
    (their_gradient,) = torch.autograd.grad(expected, now_BT)

    settings = AlgorithmSettings("x", **told.ours)  # type: ignore[arg-type]
    columns = {
        "advantage": samples.advantage_B,
        "keep": torch.ones(len(COUNTS), dtype=torch.float64),
    }
    update = denominators(COUNTS_R, columns["keep"])
    batch = flatten(settings, COUNTS_R, columns, update, old_BT[AT_BT])
    if settings.chooses_tokens:
        # By the policy as it is now
        present = replace(batch, proximal_T=now_BT.detach()[AT_BT])
        drawn_T = tickets(0, 0, torch.arange(len(COUNTS)), COUNTS_R)
        selected_T = token_stage(settings, present, alone, drawn_T).selected_T
        assert selected_T is not None and 1 < int(selected_T.sum()) < NUM_TOKENS
        batch = replace(batch, selected_T=selected_T)
    loss = Objective(settings).loss(batch, {"logprob": now_BT[AT_BT]}).loss
    (gradient,) = torch.autograd.grad(loss, now_BT)
    return (loss.detach(), gradient), (expected.detach(), their_gradient)


@pytest.mark.parametrize("name", list(CASES))
def test_loss_and_gradient_equal_verl(name: str) -> None:
    for seed in range(3):
        samples = Samples(seed)
        ours, theirs = both(CASES[name](), samples, samples.now_BT, samples.old_BT)
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        assert ours[1].abs().max() > 1e-3


def test_clip_cov_draws_as_many_as_verl() -> None:
    """Which ones is drawn: theirs by torch's generator, ours by hash."""
    samples = Samples()
    now_BT, advantages_BT = samples.old_BT, samples.advantage_B[:, None].expand(-1, WIDTH)
    for share in (1e-3, 0.1, 0.2):
        policy_loss = covariances(clip_cov_ratio=share, clip_cov_lb=0.05, clip_cov_ub=9.0)
        _, figures = core_algos.compute_policy_loss_clip_cov(
            now_BT, now_BT, advantages_BT, MASK_BT, config=actor(policy_loss=policy_loss)
        )
        settings = replace(
            PRESETS["clip_cov"], covariance=CovarianceSettings(share, low=0.05, high=9.0)
        )
        columns = {"advantage": samples.advantage_B, "keep": torch.ones(len(COUNTS))}
        batch = flatten(settings, COUNTS_R, columns, Denominators(1.0, 1.0), now_BT[AT_BT])
        drawn_T = tickets(0, 0, torch.arange(len(COUNTS)), COUNTS_R)
        selected_T = token_stage(settings, batch, alone, drawn_T).selected_T
        assert selected_T is not None
        ours = int(selected_T.sum())
        assert ours == round(figures["actor/pg_clipfrac"] * NUM_TOKENS) > 0


@pytest.mark.parametrize("mean", list(MEANS))
def test_means_equal_verl(mean: str) -> None:
    losses_BT = Samples().values_BT
    expected = core_algos.agg_loss(losses_BT, MASK_BT, mean, loss_scale_factor=11)
    mode, constant = MEANS[mean]["aggregation"], MEANS[mean].get("constant_length", 0)
    row_T = torch.repeat_interleave(torch.arange(len(COUNTS)), COUNTS_R)
    ones_R = torch.ones(len(COUNTS), dtype=torch.float64)
    update = denominators(COUNTS_R, ones_R)
    totals = update.total_tokens, update.total_rows
    weight_T = token_weights(mode, row_T, COUNTS_R, ones_R, *totals, constant)  # type: ignore[arg-type]
    torch.testing.assert_close((weight_T * losses_BT[AT_BT]).sum(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimates_and_their_gradients_equal_verl(name: str) -> None:
    samples = Samples()
    found = []
    for estimate in (
        lambda now_BT: core_algos.kl_penalty(now_BT, samples.reference_BT, name),
        lambda now_BT: kl.estimate(name, now_BT, samples.reference_BT),  # type: ignore[arg-type]
    ):
        now_BT = samples.now_BT.clone().requires_grad_()
        value_BT = estimate(now_BT)
        (gradient_BT,) = torch.autograd.grad(value_BT.sum(), now_BT)
        found.append((value_BT.detach(), gradient_BT))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", [0.2, 1e9])
def test_the_value_loss_equals_verl(clip: float) -> None:
    samples = Samples()
    returns_BT = samples.values_BT + samples.rewards_B[:, None]
    expected, share = core_algos.compute_value_loss(
        samples.new_values_BT, returns_BT, samples.values_BT, MASK_BT, clip
    )
    found = value_loss(
        samples.new_values_BT[AT_BT], samples.values_BT[AT_BT], returns_BT[AT_BT], clip
    )
    torch.testing.assert_close(found.loss_T.mean(), expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.clipped_T.double().mean(), share.double(), rtol=1e-6, atol=0)


def test_the_kl_controller_equals_verl() -> None:
    """Of samples of one token, where KL per sample and per token are one."""
    target, horizon, ones_R = 0.3, 100, torch.ones(len(COUNTS), dtype=torch.int64)
    controller = core_algos.AdaptiveKLController(0.05, target, horizon)
    settings = replace(
        PRESETS["grpo"], kl=KlSettings(0.05, target=target, gain=len(COUNTS) / horizon)
    )
    control = KlControl(settings)
    columns = {"advantage": torch.zeros(len(COUNTS)), "keep": torch.ones(len(COUNTS))}
    for seed in range(20):
        samples = Samples(seed)
        old_R, reference_R = samples.old_BT[:, 0] + 0.3, samples.reference_BT[:, 0]
        batch = flatten(
            settings,
            ones_R,
            columns,
            Denominators(1.0, 1.0),
            old_R,
            reference_T=reference_R,
        )
        figures = control.follow(batch, alone)
        controller.update(float((old_R - reference_R).mean()), len(COUNTS))
        assert figures["kl/measured"] == pytest.approx(
            float((old_R - reference_R).mean()), abs=1e-6
        )
        assert control.coef == pytest.approx(controller.value, rel=1e-6)
