"""Losses that couple rows: exact whatever ranks and micro-batches do to a unit, and they learn.

Exactness is held against autograd over the loss written down directly, over all pairs at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Lock

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.residents import build_residents
from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.backends.settings import LearnerSettings
from manta.actors.collectives import alone
from manta.actors.coupled_update import CoupledUpdate
from manta.actors.learning import Learner
from manta.actors.models.policy import evaluate
from manta.actors.models.reward_model import RewardModel
from manta.actors.rows import Row
from manta.actors.sharding import kept_rows
from manta.actors.step_tokens import StepTokens
from manta.algorithms.aggregate import Denominators
from manta.algorithms.coupled_losses import margin_weight
from manta.algorithms.presets import PRESETS
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import COMPANION, WeightVersion
from manta.envs.step_records import StepPlan
from pair_plans import pair_plan
from tiny import VOCABULARY, groups_of, join_group, rows_by_index, run_ranks, tiny_model, tiny_spec
from tiny_learner import TinyLearner

SIZES = (4, 3, 5, 2)
MARGIN = 0.3
RATE = 1024.0
"""A power of two, so that the movement is large beside the rounding of the weights."""
ALGORITHMS = {
    "dpo": PRESETS["dpo"],
    "dpo, all pairs": replace(PRESETS["dpo"], pairs="all"),
    "dpo, all pairs by prompt": replace(PRESETS["dpo"], pairs="all", unit="group"),
    "madpo": PRESETS["madpo"],
    "xpo": replace(PRESETS["xpo"], exploration_coef=0.2),
    "xpo, by prompt": replace(PRESETS["xpo"], exploration_coef=0.02, unit="group"),
    "simpo, beside": replace(
        PRESETS["simpo"], samples_from="policy", pairs="companion", companion="written"
    ),
    "ipo": PRESETS["ipo"],
    "simpo, all pairs": replace(PRESETS["simpo"], pairs="all"),
    "kto": replace(PRESETS["kto"], undesirable_weight=1.5),
    "kto, samples": replace(PRESETS["kto"], samples_from="policy", reference_point="samples"),
    "pacs": PRESETS["pacs"],
    "pacs, behaviour": replace(PRESETS["pacs"], proximal="behaviour", beta=0.3),
    "reward model": PRESETS["reward_model"],
    "reward model, pairs": replace(PRESETS["reward_model"], unit="pair"),
}
ON_RANKS = (
    "dpo",
    "dpo, all pairs by prompt",
    "xpo",
    "simpo, all pairs",
    "kto, samples",
    "pacs",
    "reward model",
)
FROZEN = ResidentRates({"reward": RATE}, is_policy_frozen=True)


class Coupled(TinyLearner):
    """A learner over `SIZES`, by SGD without clipping."""

    def __init__(
        self,
        algorithm: AlgorithmSettings,
        budget: int = 8192,
        ranks: tuple[int, int] = (0, 1),
        group: dist.ProcessGroup | None = None,
        dtype: torch.dtype = torch.float64,
        **values: object,
    ) -> None:
        groups = groups_of(SIZES, companion=algorithm.companion)
        super().__init__(
            algorithm,
            groups,
            pair_plan(algorithm, groups, MARGIN),
            temperature=1.0,
            spread=0.1,
            ranks=ranks,
            group=group,
            dtype=dtype,
            **{"optimizer": "sgd", "clip_norm": 0.0, "tokens_per_micro_batch": budget, **values},
        )
        beside = [resident.module for resident in self.residents.values()]
        self.trained: nn.Module = beside[0] if beside else self.policy
        self.parameters = list(self.trained.parameters())
        self.start = self.flat()

    def flat(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.parameters])

    def step(self, updates: int = 1) -> dict[str, float]:
        residents = NO_RESIDENTS if self.algorithm.reward_model is None else FROZEN
        return self.learner.step(self.plan, self.rows(updates), 1, updates, RATE, residents)

    def moved(self) -> Tensor:
        return (self.start - self.flat()) / RATE


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def directly(coupled: Coupled) -> tuple[Tensor, Tensor]:
    """The loss over all pairs or rows at once, as the papers write it, and its gradient by
    autograd."""
    rows = list(rows_by_index(coupled.plan, coupled.groups).values())
    algorithm, plan = coupled.algorithm, coupled.plan
    has_scores = algorithm.loss == "bradley_terry"
    residents = (coupled.trained,) if has_scores else ()
    want = "score" if has_scores else "logprob"
    stat_T = evaluate(coupled.policy, rows, (want,), 1.0, residents)[want].double()  # type: ignore[arg-type]
    value_N = torch.stack([part.sum() for part in stat_T.split([r.num_tokens for r in rows])])
    logprob_N = value_N
    if algorithm.needs_reference:
        value_N = value_N - torch.tensor([row_sum(row) for row in rows], dtype=torch.float64)
    if algorithm.loss in ("ipo", "simpo"):
        value_N = value_N / torch.from_numpy(plan.num_tokens_N)
    if algorithm.loss == "pacs":
        loss_P = question_losses(coupled, value_N)
    elif algorithm.loss == "kto":
        loss_P = kto_losses(algorithm, value_N, torch.from_numpy(plan.coefficients["label"]) > 0)
    else:
        chosen_P, rejected_P = torch.from_numpy(plan.pair_P2.T.astype(np.int64))
        ahead_P = value_N[chosen_P] - value_N[rejected_P]
        loss_P = pair_losses(algorithm, ahead_P)
        if algorithm.loss == "xpo":
            # One row of every pair is the last of its group
            last_N = torch.from_numpy(np.cumsum(np.bincount(plan.group_N)) - 1)
            beside_P = last_N[torch.from_numpy(plan.group_N.astype(np.int64))[chosen_P]]
            assert bool(((beside_P == chosen_P) != (beside_P == rejected_P)).all())
            loss_P = loss_P + algorithm.exploration_coef * logprob_N[beside_P]
    if algorithm.unit != "group" or algorithm.loss == "pacs":
        loss = loss_P.mean()
    else:
        group_P = plan.group_N[plan.pair_P2[:, 0]]
        loss = torch.stack([loss_P[group_P == g].mean() for g in np.unique(group_P)]).mean()
    gradients = torch.autograd.grad(loss, coupled.parameters)
    return loss.detach(), torch.cat([g.double().flatten() for g in gradients])


def pair_losses(algorithm: AlgorithmSettings, ahead_P: Tensor) -> Tensor:
    if algorithm.loss == "ipo":
        return (ahead_P - 0.5 / algorithm.beta) ** 2
    if algorithm.loss == "bradley_terry":
        return -logsigmoid(ahead_P - float(np.float32(MARGIN)))
    margin = algorithm.target_margin if algorithm.loss == "simpo" else 0.0
    loss_P = -logsigmoid(algorithm.beta * ahead_P - margin)
    if algorithm.margin_weight is None:
        return loss_P
    return loss_P * margin_weight(algorithm.margin_weight, torch.tensor(MARGIN).double())


def question_losses(coupled: Coupled, value_N: Tensor) -> Tensor:
    """Of each prompt: psi by matrix, leave-one-out."""
    rows, algorithm = coupled.rows(1), coupled.algorithm
    start_N = value_N.detach()
    if algorithm.proximal == "behaviour":
        start_N = torch.tensor([sampled_sum(rows[i]) for i in sorted(rows)], dtype=torch.float64)
    proxy_N, group_N = algorithm.beta * (value_N - start_N), torch.from_numpy(coupled.plan.group_N)
    label_N = torch.from_numpy(coupled.plan.coefficients["label"]).double()
    losses = []
    for group in torch.unique(group_N):
        own = group_N == group
        count = int(own.sum())
        matrix = (torch.eye(count, dtype=torch.float64) * count - 1) / (count - 1)
        label_K, classes = label_N[own], label_N[own].unique()
        weight_K = torch.ones(count, dtype=torch.float64)
        if len(classes) == 2:
            for label in classes:
                weight_K[label_K == label] = count / (2 * float((label_K == label).sum()))
        losses.append(
            binary_cross_entropy_with_logits(matrix @ proxy_N[own], label_K, weight=weight_K)
        )
    return torch.stack(losses)


def kto_losses(algorithm: AlgorithmSettings, ratio_N: Tensor, is_good_N: Tensor) -> Tensor:
    held_N = ratio_N.detach()
    good, other = held_N[~is_good_N].mean().clamp(min=0), held_N[is_good_N].mean().clamp(min=0)
    if algorithm.reference_point == "samples":
        good = other = held_N.mean().clamp(min=0)
    value_N = torch.where(is_good_N, ratio_N - good, other - ratio_N)
    weight_N = torch.where(is_good_N, algorithm.desirable_weight, algorithm.undesirable_weight)
    return weight_N * (1 - torch.sigmoid(algorithm.beta * value_N))


def sampled_sum(row: Row) -> float:
    assert row.behaviour_logprobs is not None
    return float(row.behaviour_logprobs[row.loss_mask].astype(np.float64).sum())


def row_sum(row: Row) -> float:
    assert row.reference_logprobs is not None
    return float(row.reference_logprobs[row.loss_mask].astype(np.float64).sum())


def rank_main(rank: int, world_size: int, folder: Path) -> None:
    group = join_group(rank, world_size, folder)
    results = {}
    for name in ON_RANKS:
        for budget in (8192, 60, 1):
            coupled = Coupled(ALGORITHMS[name], budget, (rank, world_size), group)
            results[name, budget] = (coupled.step(), coupled.moved())
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_gradients_are_those_of_direct_autograd(tmp_path: Path) -> None:
    """To 1e-6, for one rank and two, with pairs whole, some of them split, and every row alone."""
    run_ranks(rank_main, 2, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, algorithm in ALGORITHMS.items():
        loss, gradient = directly(Coupled(algorithm))
        assert gradient.norm() > 1e-3
        reports = []
        for budget in (8192, 60, 1):
            own = Coupled(algorithm, budget)
            reports.append(own.step())
            assert relative(own.moved(), gradient) < 1e-6, (name, budget)
            if name not in ON_RANKS:
                continue
            for of_rank in ranks:
                report, moved = of_rank[name, budget]
                assert relative(moved, gradient) < 1e-6, (name, budget)
                reports.append(report)
            assert torch.equal(*(of_rank[name, budget][1] for of_rank in ranks))
        for report in reports:
            assert report["loss"] == pytest.approx(float(loss), rel=1e-6), name
            assert report == pytest.approx(reports[0], rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("name", ["dpo, all pairs", "kto", "reward model"])
@pytest.mark.parametrize("budget", [8192, 60, 1])
def test_in_float32_too(name: str, budget: int) -> None:
    coupled = Coupled(ALGORITHMS[name], budget, dtype=torch.float32)
    _, gradient = directly(coupled)
    coupled.step()
    assert relative(coupled.moved(), gradient) < 2e-6


class Meeting:
    """Sums over ranks that are threads."""

    def __init__(self, count: int) -> None:
        self._said: list[Tensor] = []
        self._all_here = Barrier(count)
        self._lock = Lock()

    def __call__(self, values: Tensor) -> Tensor:
        with self._lock:
            self._said.append(values)
        self._all_here.wait()
        total: Tensor = torch.stack(self._said).sum(0)
        if self._all_here.wait() == 0:
            self._said.clear()
        self._all_here.wait()
        return total


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_units_whose_rows_are_on_several_ranks(name: str) -> None:
    """The learner keeps units together; the exchange does not rely on it."""
    coupled = Coupled(ALGORITHMS[name])
    _, gradient = directly(coupled)
    rows = rows_by_index(coupled.plan, coupled.groups)
    whole = kept_rows(coupled.plan)
    meeting = Meeting(2)

    def of_rank(rank: int) -> Tensor:
        mine = [rows[index] for index in whole[rank::2].tolist()]
        return share_of(coupled, mine, whole, meeting)

    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(of_rank, range(2)))
    assert relative(shares[0] + shares[1], gradient) < 1e-6


def share_of(
    coupled: Coupled, mine: Sequence[Row], whole: npt.NDArray[np.int64], all_reduce: AllReduce
) -> Tensor:
    """A rank's share of the gradient."""
    update = CoupledUpdate(coupled.algorithm, coupled.plan, whole, mine, 8192)
    tokens = StepTokens(coupled.algorithm, tuple(coupled.plan.coefficients), mine, None, alone)
    assert update.is_split(all_reduce)
    residents = () if update.scalar == "logprob" else (coupled.trained,)
    found = evaluate(coupled.policy, mine, (update.scalar,), 1.0, residents)  # type: ignore[arg-type]
    start_T = found[update.scalar].detach() if coupled.algorithm.proximal == "learner" else None
    batch = tokens.batch(mine, Denominators(1.0, 1.0), start_T)
    update.exchange(batch, found[update.scalar], all_reduce)
    terms = update.loss(mine, batch, found)
    gradients = torch.autograd.grad(terms.loss, coupled.parameters)
    return torch.cat([g.double().flatten() for g in gradients])


def test_what_pacs_compares_with_stays_that_of_the_steps_start() -> None:
    """Several updates and epochs, whatever the micro-batches; the log-ratios grow."""
    moved = []
    for budget in (8192, 60, 1):
        coupled = Coupled(PRESETS["pacs"], budget)
        rows = coupled.rows(2)
        report = coupled.learner.step(coupled.plan, rows, 3, 2, 0.1)
        assert report["updates"] == 6 and report["labels/margin"] > 0
        moved.append(coupled.moved())
    assert relative(moved[1], moved[0]) < 1e-6 and relative(moved[2], moved[0]) < 1e-6


def test_a_pass_is_made_only_where_a_unit_is_split() -> None:
    calls = []

    class Counted(PlainBackend):
        def evaluate(self, rows, wants, temperature):  # type: ignore[no-untyped-def]
            calls.append(len(rows))
            return super().evaluate(rows, wants, temperature)

    for name in ("dpo", "kto"):
        for budget in (8192, 1):
            coupled = Coupled(PRESETS[name], budget)
            coupled.backend.__class__ = Counted
            coupled.step(updates=2)
    # Two updates of two groups each: a pair in each group, and all of their 14 rows.
    assert calls == [4, 4, 7, 7]


def test_the_policy_stays_as_it_is_to_the_bit_while_a_reward_model_learns() -> None:
    coupled = Coupled(PRESETS["reward_model"], dtype=torch.float32, weight_decay=0.1)
    before = coupled.backend.weights(WeightVersion(0, 0)).sha256
    report = steps(coupled, 2, updates=2, epochs=2)
    assert coupled.backend.weights(WeightVersion(2, 0)).sha256 == before
    assert relative(coupled.flat(), coupled.start) > 1e-5
    assert report["reward/grad_norm"] > 0
    assert "grad_norm" not in report
    assert report["updates"] == 4


def test_what_a_step_reports() -> None:
    coupled = Coupled(PRESETS["dpo"])
    report = coupled.step()
    names = {name for name in report if name.startswith("pairs/")}
    assert names == {f"pairs/{n}" for n in ("accuracy", "margin", "chosen", "rejected", "count")}
    assert report["pairs/count"] == 4
    assert report["pairs/margin"] == pytest.approx(
        report["pairs/chosen"] - report["pairs/rejected"]
    )
    # The rows were sampled: engine and learner are compared as ever.
    assert report["mismatch/same_version/tokens"] > 0
    assert 0 < report["entropy"] <= math.log(VOCABULARY)
    assert report["kl_reference_k3"] > 0 and report["kl_behaviour"] >= 0
    assert "ess" not in report, "nothing is weighed by importance"
    assert "entropy" not in Coupled(PRESETS["reward_model"]).step()
    assert "pairs/companion_logprob" in Coupled(PRESETS["xpo"]).step()
    labels = {name for name in Coupled(PRESETS["kto"]).step() if name.startswith("labels/")}
    figures = ("accuracy", "reference_point", "desirable", "chosen", "rejected")
    assert labels == {f"labels/{name}" for name in figures}


def test_every_coupled_preset_makes_a_step() -> None:
    """The others: test_learning."""
    for name, preset in PRESETS.items():
        if preset.is_coupled:
            coupled = Coupled(preset, 60)
            report = coupled.step(updates=2)
            assert report["updates"] == 2 and report["skipped_updates"] == 0, name
            report.pop("kl_reference_k3", None)  # overflows, so far has the policy gone
            assert np.isfinite(list(report.values())).all(), name
            assert relative(coupled.flat(), coupled.start) > 1e-3, name


def test_a_resumed_reward_model_goes_on_to_the_bit(tmp_path: Path) -> None:
    def made() -> Coupled:
        return Coupled(
            PRESETS["reward_model"], 60, dtype=torch.float32, optimizer="adamw", clip_norm=1.0
        )

    through, resumed = made(), made()
    steps(through, 2)
    through.backend.save(tmp_path)
    resumed.backend.load(tmp_path)
    steps(through, 2)
    steps(resumed, 2)
    assert torch.equal(through.flat(), resumed.flat())
    assert relative(through.flat(), through.start) > 1e-3


def steps(coupled: Coupled, count: int, updates: int = 1, epochs: int = 1) -> dict[str, float]:
    """Of the reward model, at a small rate."""
    residents = ResidentRates({"reward": 3e-3}, is_policy_frozen=True)
    rows = rows_by_index(coupled.plan, coupled.groups)
    report: dict[str, float] = {}
    for _ in range(count):
        report = coupled.learner.step(coupled.plan, rows, epochs, updates, 0.0, residents)
    return report


def test_rows_without_a_reference_are_told() -> None:
    coupled = Coupled(PRESETS["dpo"])
    coupled.groups = [replace(group, reference=None) for group in coupled.groups]
    for budget in (8192, 1):
        coupled.learner = Learner(coupled.backend, coupled.algorithm, budget)
        with pytest.raises(ValueError, match="run reference workers"):
            coupled.step()


def test_what_is_measured_of_samples_leaves_written_rows_out() -> None:
    """Nobody sampled them in this stage: engine and learner are compared over the samples alone."""
    coupled = Coupled(PRESETS["xpo"])
    report = coupled.step()
    plan = coupled.plan
    in_pairs = np.unique(plan.pair_P2)
    is_beside = plan.sample_N[in_pairs] == COMPANION
    assert is_beside.sum() == len(SIZES)
    assert report["tokens"] == plan.num_tokens_N[in_pairs].sum()
    compared = [f"mismatch/{kind}/tokens" for kind in ("same_version", "stale")]
    wanted = plan.num_tokens_N[in_pairs[~is_beside]].sum()
    assert sum(report.get(name, 0.0) for name in compared) == wanted


def test_a_companion_without_reference_log_probs_is_told() -> None:
    """As one that was made for another loss."""
    coupled = Coupled(PRESETS["xpo"])
    beside = [each.companion for each in coupled.groups]
    coupled.groups = [
        replace(group, companion=each and replace(each, reference_logprobs=None))
        for group, each in zip(coupled.groups, beside, strict=True)
    ]
    for budget in (8192, 1):
        coupled.learner = Learner(coupled.backend, coupled.algorithm, budget)
        with pytest.raises(ValueError, match=r"xpo .* run reference workers"):
            coupled.step()


def of_rule(seed: int, count: int) -> tuple[StepPlan, dict[int, Row]]:
    """Pairs of random answers; the preferred one holds the token 7, the other none."""
    generator = np.random.default_rng(seed)
    groups = []
    for group in groups_of((2,) * count, seed):
        members = []
        for sample, trajectory in enumerate(group.trajectories):
            ids = trajectory.token_ids.copy()
            ids[ids == 7] = 8
            if sample == 0:
                ids[generator.choice(np.flatnonzero(trajectory.loss_mask))] = 7
            members.append(replace(trajectory, token_ids=ids))
        scores = tuple(replace(group.scores[s], value=1.0 - s) for s in range(2))
        groups.append(replace(group, trajectories=tuple(members), scores=scores))
    plan = pair_plan(PRESETS["reward_model"], groups)
    return plan, rows_by_index(plan, groups)


def test_a_reward_model_learns_a_rule() -> None:
    """Which of two answers holds a certain token, on pairs that it has not seen."""
    settings = LearnerSettings(tokens_per_micro_batch=8192)
    algorithm, policy = PRESETS["reward_model"], tiny_model()
    residents = build_residents(algorithm, settings, tiny_spec(), VOCABULARY, policy)
    reward = residents["reward"].module
    assert isinstance(reward, RewardModel)
    learner = Learner(PlainBackend(policy, settings, None, residents), algorithm, 8192)
    rates = ResidentRates({"reward": 1e-2}, is_policy_frozen=True)
    reports = [learner.step(*of_rule(seed, 32), 1, 1, 0.0, rates) for seed in range(60)]
    assert reports[0]["pairs/accuracy"] < 0.7
    assert np.mean([report["pairs/accuracy"] for report in reports[-5:]]) > 0.9
    plan, rows = of_rule(1000, 100)
    with torch.no_grad():
        score_N = reward.scores(list(rows.values()))
    ahead_P = score_N[plan.pair_P2[:, 0].tolist()] > score_N[plan.pair_P2[:, 1].tolist()]
    assert float(ahead_P.float().mean()) > 0.9


def test_dpo_raises_the_margin() -> None:
    settings = LearnerSettings(tokens_per_micro_batch=8192)
    policy = tiny_model()
    learner = Learner(PlainBackend(policy, settings), PRESETS["dpo"], 8192)
    plan, rows = of_rule(0, 16)
    logprob_T = evaluate(policy, list(rows.values()), ("logprob",), 1.0)["logprob"].detach()
    parts = logprob_T.split([row.num_tokens for row in rows.values()])
    for (index, row), part in zip(list(rows.items()), parts, strict=True):
        reference = np.zeros(len(row.token_ids), np.float32)
        reference[row.loss_mask] = part.numpy()
        rows[index] = replace(row, reference_logprobs=reference)
    reports = [learner.step(plan, rows, 1, 1, 3e-3) for _ in range(15)]
    assert reports[0]["loss"] == pytest.approx(np.log(2), rel=1e-4)
    assert reports[0]["pairs/margin"] == pytest.approx(0, abs=1e-5)
    assert reports[-1]["pairs/margin"] > 0.3
    assert reports[-1]["pairs/accuracy"] == 1.0
