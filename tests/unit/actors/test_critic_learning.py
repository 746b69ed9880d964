"""Steps with a critic, or another model beside the policy: the same whatever ranks and
micro-batches are; and the critic learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from manta.actors.backends.schedule import ResidentRates
from manta.actors.weight_tensors import unpack
from manta.algorithms.part_settings import (
    CriticSettings,
    ImplicitRewardSettings,
    KlSettings,
    OffPolicySettings,
)
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import WeightVersion
from tiny import (
    groups_of,
    join_group,
    paid_within,
    plan_of,
    rows_by_index,
    run_ranks,
)
from tiny_learner import TinyLearner

PPO = replace(
    PRESETS["ppo"], gamma=0.95, critic=CriticSettings(clip=0.2), kl=KlSettings(0.1, "k1", "reward")
)
SHARED = replace(PPO, critic=CriticSettings("shared", clip=0.2))
PRIME = replace(PRESETS["prime"], implicit_reward=ImplicitRewardSettings(beta=0.5), filters=())
VARIANTS = {
    "own": PPO,
    "shared": SHARED,
    "engine's log-probs": replace(PPO, proximal="behaviour", kl=KlSettings()),
    "truncated": replace(PPO, off_policy=OffPolicySettings("truncate", "token", None, 2.0)),
    "masked rows": replace(
        SHARED, off_policy=OffPolicySettings("mask", "sequence", 0.1, 10.0), kl=KlSettings(0.1)
    ),
    "sequence mean": replace(PPO, aggregation="sequence_mean", whiten_advantages=False),
    "implicit rewards": PRIME,
    "implicit rewards, learnt first": replace(
        PRIME,
        implicit_reward=ImplicitRewardSettings(beta=0.5, scores="after", normalize=True),
        whiten_advantages=True,
    ),
}
SIZES = (4, 3, 5)
KEEP = [1.0] * 4 + [0.0] * 3 + [1.0] * 5
WARM_UP = ResidentRates({"critic": 2e-3}, is_policy_frozen=True)


class Ppo(TinyLearner):
    """A learner with a critic, or an implicit reward model, over `SIZES`."""

    def __init__(
        self,
        algorithm: AlgorithmSettings,
        budget: int = 8192,
        ranks: tuple[int, int] = (0, 1),
        group: dist.ProcessGroup | None = None,
        keep: list[float] | None = None,
        is_paid_within: bool = False,
        **values: object,
    ) -> None:
        groups = groups_of(SIZES)
        if is_paid_within:
            groups = paid_within(groups)
        plan = plan_of(groups, keep)
        is_right = (plan.coefficients["advantage"] > 0).astype(np.float32)
        super().__init__(
            algorithm,
            groups,
            replace(plan, coefficients={**plan.coefficients, "label": is_right}),
            temperature=0.9,
            spread=0.05,
            ranks=ranks,
            group=group,
            tokens_per_micro_batch=budget,
            **values,
        )
        [(self.name, beside)] = self.residents.items()
        self.beside = beside.module
        self.start = self.flat()

    def step(
        self, epochs: int, updates: int, rate: float, residents: ResidentRates | None = None
    ) -> dict[str, float]:
        rows = self.rows(updates)
        residents = residents or ResidentRates({self.name: 2e-3})
        return self.learner.step(self.plan, rows, epochs, updates, rate, residents)

    def flat(self) -> dict[str, Tensor]:
        state = unpack(self.backend.weights(WeightVersion(0, 0)))
        return {
            "policy": torch.cat([state[name].flatten() for name in sorted(state)]),
            self.name: torch.cat([p.detach().flatten() for p in self.beside.parameters()]),
        }

    def moved(self) -> dict[str, Tensor]:
        return {name: now - self.start[name] for name, now in self.flat().items()}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def gradients(
    algorithm: AlgorithmSettings, **how: object
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of one SGD update: steps of a power of two are large beside the rounding of the weights."""
    ppo = Ppo(algorithm, keep=KEEP, optimizer="sgd", clip_norm=0.0, **how)  # type: ignore[arg-type]
    report = ppo.step(1, 1, 1024.0, ResidentRates({ppo.name: 1024.0}))
    return {name: each / 1024.0 for name, each in ppo.moved().items()}, report


def movement(
    algorithm: AlgorithmSettings, **how: object
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of twenty updates by AdamW."""
    ppo = Ppo(algorithm, keep=KEEP, **how)  # type: ignore[arg-type]
    report: dict[str, float] = {}
    for _ in range(5):
        report = ppo.step(2, 2, 1e-3)
    return ppo.moved(), report


def runs_of(name: str) -> tuple[Callable[..., tuple[dict[str, Tensor], dict[str, float]]], ...]:
    """The slower one for some variants only. Who scores after such a step says nothing useful."""
    if name == "implicit rewards, learnt first":
        return (movement,)
    return (gradients, movement) if name in ("own", "shared") else (gradients,)


def rank_main(rank: int, world_size: int, folder: Path) -> None:
    group = join_group(rank, world_size, folder)
    results = {}
    for name, algorithm in VARIANTS.items():
        how = {"budget": 60, "ranks": (rank, world_size), "group": group}
        results[name] = [made(algorithm, **how) for made in runs_of(name)]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_and_micro_batches_change_neither_policy_nor_critic(tmp_path: Path) -> None:
    """Gradients to 1e-5, the movement of twenty updates to 1e-4; ranks are equal to the bit."""
    run_ranks(rank_main, 2, tmp_path)
    of_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, algorithm in VARIANTS.items():
        for run, made in enumerate(runs_of(name)):
            bound = 1e-5 if made is gradients else 1e-4
            wanted, told = made(algorithm)
            found = [made(algorithm, budget=1), *(results[name][run] for results in of_ranks)]
            for moved, report in found:
                for module, each in wanted.items():
                    assert each.norm() > 1e-3
                    assert relative(moved[module], each) < bound, (name, module)
                assert report == pytest.approx(told, rel=1e-3, abs=1e-6), name
            for module in wanted:
                assert torch.equal(found[-1][0][module], found[-2][0][module])


@pytest.mark.parametrize("algorithm", [PPO, SHARED], ids=["own", "shared"])
def test_in_warm_up_the_policy_stays_equal_to_the_bit(algorithm: AlgorithmSettings) -> None:
    ppo = Ppo(algorithm)
    before = ppo.backend.weights(WeightVersion(0, 0)).sha256
    reports = [ppo.step(2, 2, 1e-2, WARM_UP) for _ in range(3)]
    assert ppo.backend.weights(WeightVersion(3, 0)).sha256 == before
    moved = ppo.moved()
    assert not moved["policy"].any()
    assert moved["critic"].norm() > 1e-3
    assert "policy_loss" not in reports[-1] and "grad_norm" not in reports[-1]
    assert reports[-1]["updates"] == 4
    assert reports[-1]["critic/value_loss"] < reports[0]["critic/value_loss"]
    ppo.step(1, 1, 1e-2)
    assert ppo.moved()["policy"].norm() > 1e-3


def test_a_policy_after_warm_up_has_no_trace_of_it() -> None:
    """Its optimizer starts when it does: one update from a fresh state, AdamW's first."""
    ppo = Ppo(PPO, optimizer="adamw", clip_norm=0.0)
    for _ in range(3):
        ppo.step(1, 1, 1e-2, WARM_UP)
    ppo.step(1, 1, 1e-2)
    moved = ppo.moved()["policy"]
    # AdamW's first step is the learning rate in every weight that has a gradient.
    usual = moved.abs()[moved != 0]
    assert float(usual.median()) == pytest.approx(1e-2, rel=1e-2)


@pytest.mark.parametrize("algorithm", [PPO, SHARED], ids=["own", "shared"])
def test_a_critic_learns_what_its_rows_are_worth(algorithm: AlgorithmSettings) -> None:
    critic = replace(algorithm.critic or CriticSettings(), clip=None)
    monte_carlo = replace(algorithm, critic=critic, gamma=1.0, gae_lambda=1.0, kl=KlSettings())
    ppo = Ppo(monte_carlo, betas=(0.9, 0.999))
    rates = ResidentRates({"critic": 2e-2}, is_policy_frozen=True)
    reports = [ppo.step(5, 1, 1e-3, rates) for _ in range(20)]
    assert reports[0]["critic/explained_variance"] < 0.5
    assert reports[-1]["critic/explained_variance"] > reports[0]["critic/explained_variance"] + 0.3
    # Without discount, KL and bootstrap a token's return is its row's reward.
    rows = list(rows_by_index(ppo.plan, ppo.groups).values())
    rewards = np.repeat([r.coefficients["advantage"] for r in rows], [r.num_tokens for r in rows])
    for report in reports:
        assert report["critic/return_mean"] == pytest.approx(rewards.mean(), rel=1e-4)


def test_reports_name_the_critic_s_figures() -> None:
    report = Ppo(PPO).step(2, 2, 1e-3)
    assert {name for name in report if name.startswith("critic/")} == {
        "critic/value_loss",
        "critic/clip_fraction",
        "critic/grad_norm",
        "critic/value_mean",
        "critic/return_mean",
        "critic/explained_variance",
    }
    assert report["ratio_max"] > 1.0
    assert report["mismatch/same_version/tokens"] > 0


def test_rto_makes_a_step_that_rewards_within_decide() -> None:
    """The critic learns returns of what is paid within a row, beside its own reward."""
    monte_carlo = replace(PRESETS["rto"], gae_lambda=1.0, kl=KlSettings())
    ppo = Ppo(monte_carlo, is_paid_within=True)
    report = ppo.step(2, 2, 1e-3)
    assert report["updates"] == 4 and np.isfinite(list(report.values())).all()
    assert ppo.moved()["policy"].norm() > 1e-3
    returns = []
    for row in rows_by_index(ppo.plan, ppo.groups).values():
        paid = row.rewards_T().astype(np.float64)
        paid[-1:] += row.coefficients["advantage"]
        returns += [float(paid[t:].sum()) for t in range(len(paid))]
    assert report["critic/return_mean"] == pytest.approx(np.mean(returns), rel=1e-4)


def test_one_update_starts_at_ratio_1_and_inside_the_value_s_bounds() -> None:
    report = Ppo(PPO).step(1, 1, 1e-3)
    assert report["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert report["critic/clip_fraction"] == 0.0


def test_nothing_to_train_moves_neither() -> None:
    ppo = Ppo(PPO, keep=[0.0] * 12)
    report = ppo.step(2, 2, 1.0)
    assert report == {"updates": 0, "skipped_updates": 0, "tokens": 0, "rows": 0}
    assert not any(moved.any() for moved in ppo.moved().values())
