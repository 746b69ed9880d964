"""Steps with an implicit reward model: what moves it, what it tells the policy, and that it learns.

Ranks and micro-batches: test_critic_learning. Exactness is held against autograd over the formulas
written down directly, over all rows at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from manta.actors.backends.residents import build_residents
from manta.actors.backends.schedule import ResidentRates
from manta.actors.backends.settings import LearnerSettings
from manta.actors.models.policy import evaluate
from manta.actors.rows import Row
from manta.algorithms.part_settings import ImplicitRewardSettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import ScoredGroup, WeightVersion
from manta.envs.step_records import StepPlan
from tiny import VOCABULARY, groups_of, plan_of, rows_by_index, tiny_model, tiny_spec
from tiny_learner import TinyLearner

BETA = 0.5
TEMPERATURE = 0.9
RATE = 1024.0
"""A power of two, so that the movement is large beside the rounding of the weights."""
SIZES = (4, 3, 5)
KEEP = [1.0] * 4 + [0.0] + [1.0] * 7
WEIGHTS = [1.0, 2.0] * 6


def prime(**values: object) -> AlgorithmSettings:
    told = ImplicitRewardSettings(**{"beta": BETA, **values})  # type: ignore[arg-type]
    return replace(PRESETS["prime"], implicit_reward=told, proximal="learner")


class Process(TinyLearner):
    """A learner over `SIZES`, of whose rows the fifth does not train, and every second one counts
    twice; by SGD without clipping."""

    def __init__(
        self,
        algorithm: AlgorithmSettings,
        budget: int = 8192,
        dtype: torch.dtype = torch.float64,
        **values: object,
    ) -> None:
        groups = groups_of(SIZES)
        plan = plan_of(groups, KEEP)
        columns = {
            "weight": np.array(WEIGHTS, np.float32),
            "label": (plan.coefficients["advantage"] > 0).astype(np.float32),
        }
        super().__init__(
            algorithm,
            groups,
            replace(plan, coefficients={**plan.coefficients, **columns}),
            temperature=TEMPERATURE,
            spread=0.1,
            dtype=dtype,
            **{"optimizer": "sgd", "clip_norm": 0.0, "tokens_per_micro_batch": budget, **values},
        )
        self.model = self.residents["process"].module
        self.kept = [row for row in self.rows(1).values() if row.coefficients["keep"]]
        self.start = {module: flat(module) for module in (self.policy, self.model)}

    def step(self, rate: float, of_model: float, updates: int = 1) -> dict[str, float]:
        rates = ResidentRates({"process": of_model})
        return self.learner.step(self.plan, self.rows(updates), 1, updates, rate, rates)

    def moved(self, module: nn.Module) -> Tensor:
        return (self.start[module] - flat(module)) / RATE

    def rewards(self) -> list[Tensor]:
        """By kept row, the tokens' rewards under the model as it is, with gradients."""
        said = evaluate(self.policy, self.kept, ("process_logprob",), TEMPERATURE, (self.model,))
        parts = said["process_logprob"].double().split([row.num_tokens for row in self.kept])
        return [BETA * (own - of(row)) for own, row in zip(parts, self.kept, strict=True)]

    def outcome_loss(self) -> Tensor:
        terms = [
            logsigmoid(reward.sum() if row.coefficients["label"] else -reward.sum())
            for reward, row in zip(self.rewards(), self.kept, strict=True)
        ]
        weights = [row.coefficients["weight"] for row in self.kept]
        losses = [weight * term for weight, term in zip(weights, terms, strict=True)]
        return -torch.stack(losses).sum() / sum(weights)

    def advantages(self) -> list[Tensor]:
        """By kept row, the tokens' advantages: PRIME, arXiv 2502.01456, eq. 5."""
        rewards = [reward.detach() for reward in self.rewards()]
        made = []
        for place, row in enumerate(self.kept):
            group = self.plan.group_N[row.index]
            others = [
                reward.mean()
                for other, reward in zip(self.kept, rewards, strict=True)
                if other is not row and self.plan.group_N[other.index] == group
            ]
            less = rewards[place] - torch.stack(others).mean()
            made.append(row.coefficients["advantage"] + less.flip(0).cumsum(0).flip(0))
        return made


def of(row: Row) -> Tensor:
    """The reference's log-probs of a row's trained tokens."""
    assert row.reference_logprobs is not None
    return torch.from_numpy(row.reference_logprobs[row.loss_mask]).double()


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(module.parameters()))
    return torch.cat([each.double().flatten() for each in found])


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("budget", [8192, 60, 1])
@pytest.mark.parametrize("scores", ["before", "after"])
def test_the_model_moves_by_the_outcome_s_gradient(scores: str, budget: int) -> None:
    process = Process(prime(scores=scores), budget)
    loss = process.outcome_loss()
    wanted = gradient(loss, process.model)
    assert wanted.norm() > 1e-3
    report = process.step(0.0, RATE)
    assert relative(process.moved(process.model), wanted) < 1e-6
    assert not process.moved(process.policy).any()
    assert report["process/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert report["process/grad_norm"] == pytest.approx(float(wanted.norm()), rel=1e-6)


@pytest.mark.parametrize("budget", [8192, 60, 1])
def test_the_policy_moves_by_both_streams(budget: int) -> None:
    process = Process(prime(), budget)
    parts = zip(process.advantages(), process.kept, strict=True)
    weighted = [row.coefficients["weight"] * advantage for advantage, row in parts]
    own = evaluate(process.policy, process.kept, ("logprob",), TEMPERATURE)["logprob"]
    tokens = sum(row.coefficients["weight"] * row.num_tokens for row in process.kept)
    wanted = gradient(-(torch.cat(weighted) * own).sum() / tokens, process.policy)
    process.step(RATE, 1e-3)
    assert relative(process.moved(process.policy), wanted) < 1e-6


@pytest.mark.parametrize("scores", ["before", "after"])
def test_a_step_is_scored_before_or_after_the_model_learns_from_it(scores: str) -> None:
    process = Process(prime(scores=scores))
    means = [torch.cat(process.rewards()).mean().item()]
    report = process.step(0.0, 0.1, updates=2)
    means.append(torch.cat(process.rewards()).mean().item())
    assert abs(means[1] - means[0]) > 1e-3
    wanted = means[scores == "after"]
    assert report["process/reward_mean"] == pytest.approx(wanted, rel=1e-5)


def test_what_a_step_reports() -> None:
    report = Process(prime()).step(1e-3, 1e-3, updates=2)
    names = {name for name in report if name.startswith("process/")}
    assert names == {f"process/{name}" for name in ("loss", "accuracy", "grad_norm", "reward_mean")}
    assert report["updates"] == 2 and report["skipped_updates"] == 0
    assert {"policy_loss", "grad_norm", "ratio_mean", "kl_reference"} <= report.keys()


def test_the_model_makes_one_pass_however_many_epochs_the_policy_makes() -> None:
    moved = []
    for epochs in (1, 3):
        process = Process(prime())
        rates = ResidentRates({"process": 0.1})
        process.learner.step(process.plan, process.rows(2), epochs, 2, 0.0, rates)
        moved.append(process.moved(process.model))
    assert torch.equal(*moved)


def test_an_update_that_is_not_finite_moves_neither() -> None:
    process = Process(prime())
    broken = process.groups[2].reference
    assert broken is not None
    logprobs = (*broken.logprobs[:2], broken.logprobs[2] - np.inf, *broken.logprobs[3:])
    group = replace(process.groups[2], reference=replace(broken, logprobs=logprobs))
    process.groups = [*process.groups[:2], group]
    report = process.step(1.0, 1.0)
    assert (report["updates"], report["skipped_updates"]) == (0, 2)
    assert not process.moved(process.policy).any() and not process.moved(process.model).any()


def test_rows_without_a_reference_are_told() -> None:
    process = Process(prime())
    process.groups = [replace(group, reference=None) for group in process.groups]
    with pytest.raises(ValueError, match=r"implicit_reward compares .* run reference workers"):
        process.step(1.0, 1.0)


def test_nothing_to_train_is_nothing_to_tell() -> None:
    process = Process(prime())
    nothing = {**process.plan.coefficients, "keep": np.zeros(12, np.float32)}
    process.plan = replace(process.plan, coefficients=nothing)
    report = process.step(1.0, 1.0)
    assert report == {"updates": 0, "skipped_updates": 0, "tokens": 0, "rows": 0}


def test_a_resumed_model_goes_on_to_the_bit(tmp_path: Path) -> None:
    through, resumed = (
        Process(prime(), 60, torch.float32, optimizer="adamw", clip_norm=1.0) for _ in range(2)
    )
    for _ in range(2):
        through.step(1e-3, 2e-3, updates=2)
    through.backend.save(tmp_path)
    resumed.backend.load(tmp_path)
    for process in (through, resumed):
        process.step(1e-3, 2e-3, updates=2)
    for name in ("policy", "model"):
        ends = [flat(getattr(process, name)) for process in (through, resumed)]
        assert torch.equal(*ends)
        assert relative(ends[0], through.start[getattr(through, name)]) > 1e-3
    published = through.backend.weights(WeightVersion(3, 0))
    assert len(published.specs) == len(list(through.policy.parameters()))


def of_rule(policy: nn.Module, seed: int, count: int) -> tuple[StepPlan, dict[int, Row]]:
    """Pairs of random answers; the right one holds the token 7, the other none. The reference is
    `policy`."""
    generator = np.random.default_rng(seed)
    groups = [with_rule(group, generator) for group in groups_of((2,) * count, seed)]
    plan = plan_of(groups)
    label = np.tile(np.array([1.0, 0.0], np.float32), count)
    plan = replace(plan, coefficients={**plan.coefficients, "label": label})
    rows = rows_by_index(plan, groups)
    said = evaluate(policy, list(rows.values()), ("logprob",), 1.0)["logprob"].detach()
    parts = said.split([row.num_tokens for row in rows.values()])
    for row, part in zip(list(rows.values()), parts, strict=True):
        reference = np.zeros(len(row.token_ids), np.float32)
        reference[row.loss_mask] = part.numpy()
        rows[row.index] = replace(row, reference_logprobs=reference)
    return plan, rows


def with_rule(group: ScoredGroup, generator: np.random.Generator) -> ScoredGroup:
    members = []
    for sample, trajectory in enumerate(group.trajectories):
        ids = trajectory.token_ids.copy()
        ids[ids == 7] = 8
        if sample == 0:
            ids[generator.choice(np.flatnonzero(trajectory.loss_mask))] = 7
        members.append(replace(trajectory, token_ids=ids))
    return replace(group, trajectories=tuple(members))


def test_the_model_learns_which_rows_are_right_and_by_which_token() -> None:
    """From outcomes alone, online, on answers that it has not seen: it begins as the
    reference, which says nothing, and ends by rewarding the token that decides."""
    process = TinyLearner(
        prime(), [], plan_of(groups_of((2,))), temperature=1.0, spread=0.0, betas=(0.9, 0.999)
    )
    rates = ResidentRates({"process": 2e-2})
    reference = tiny_model()
    reports: list[Mapping[str, float]] = [
        process.learner.step(*of_rule(reference, seed, 24), 1, 1, 0.0, rates) for seed in range(30)
    ]
    assert reports[0]["process/reward_mean"] == pytest.approx(0.0, abs=1e-6)
    assert reports[0]["process/loss"] == pytest.approx(np.log(2), rel=1e-4)
    assert np.mean([report["process/accuracy"] for report in reports[-5:]]) > 0.75
    plan, by_index = of_rule(reference, 1000, 50)
    rows = list(by_index.values())
    model = process.residents["process"].module
    with torch.no_grad():
        said = evaluate(process.policy, rows, ("process_logprob",), 1.0, (model,))
    reward_T = said["process_logprob"].double() - torch.cat([of(row) for row in rows])
    decides_T = torch.cat([torch.from_numpy(row.token_ids[row.loss_mask] == 7) for row in rows])
    assert int(decides_T.sum()) == len(plan.group_N) // 2
    assert reward_T[decides_T].mean() > 3 * reward_T[~decides_T].abs().mean()


def test_a_model_may_start_from_a_folder(tmp_path: Path) -> None:
    other, policy = tiny_model(seed=3), tiny_model()
    other.save_pretrained(tmp_path)  # type: ignore[operator]
    for path, wanted in ((str(tmp_path), other), (None, policy)):
        settings = prime(path=path)
        beside = build_residents(settings, LearnerSettings(), tiny_spec(), VOCABULARY, policy)
        assert torch.equal(flat(beside["process"].module), flat(wanted))
