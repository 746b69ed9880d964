"""The learner: one step of a plan is the same whatever ranks, micro-batches and order are."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.residents import build_residents
from manta.actors.backends.schedule import NO_RESIDENTS, ResidentRates
from manta.actors.backends.settings import LearnerSettings
from manta.actors.collectives import sum_over
from manta.actors.learning import Learner
from manta.actors.models.policy import evaluate
from manta.actors.rows import rows_of
from manta.actors.weight_tensors import unpack
from manta.algorithms.group_stage import group_stage
from manta.algorithms.part_settings import CovarianceSettings, KlSettings, OffPolicySettings
from manta.algorithms.presets import PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.teacher_settings import TeacherSettings
from manta.envs.records import COMPANION, ScoredGroup, WeightVersion
from manta.envs.step_records import StepPlan
from tiny import (
    HELD,
    VOCABULARY,
    groups_of,
    join_group,
    paid_within,
    plan_of,
    rows_by_index,
    run_ranks,
    taught,
    tiny_model,
    tiny_spec,
)

GRPO = AlgorithmSettings("grpo", kl=KlSettings(0.01), samples_per_prompt=4)
ALGORITHMS = {
    "grpo": GRPO,
    "dr_grpo": replace(GRPO, aggregation="sequence_sum_constant", constant_length=24),
    "whitened": replace(
        GRPO,
        proximal="learner",
        whiten_advantages=True,
        aggregation="sequence_mean",
        kl=KlSettings(0.1, "k1", "reward"),
    ),
    "truncated rows": replace(
        GRPO, proximal="learner", off_policy=OffPolicySettings("truncate", "sequence", None, 2.0)
    ),
    "masked tokens": replace(
        GRPO, proximal="learner", off_policy=OffPolicySettings("mask", "token", 0.5, 5.0)
    ),
    "row ratios": replace(
        GRPO, loss="gspo", proximal="learner", aggregation="sequence_mean", kl=KlSettings()
    ),
    "random policy's values": replace(
        GRPO, loss="rover", proximal="learner", aggregation="sequence_mean", kl=KlSettings()
    ),
    "dropped tokens": replace(GRPO, loss="clip_cov", covariance=CovarianceSettings(0.1, 0.01, 9.0)),
    "held tokens": replace(
        GRPO,
        loss="kl_cov",
        proximal="learner",
        covariance=CovarianceSettings(0.2),
        kl=KlSettings(0.1, target=0.5, gain=1.0),
    ),
    "mapo": replace(PRESETS["mapo"], gamma=0.9),
    "sft": AlgorithmSettings("sft", samples_from="given", loss="cross_entropy"),
    "among given rows": PRESETS["grao"],
    "teacher": replace(PRESETS["topk_distillation"], teacher=TeacherSettings(4, 0.3)),
}
SIZES = (4, 3, 5)
KEEP = [1.0] * 4 + [0.0] * 3 + [1.0] * 5
BESIDE_KEEP = [1.0] * 5 + [0.0] * 4 + [1.0] * 6


def made_for(algorithm: AlgorithmSettings) -> tuple[list[ScoredGroup], StepPlan]:
    """Groups of `SIZES`, with companions where the algorithm has one; the second trains nothing."""
    groups = taught(paid_within(groups_of(SIZES, companion=algorithm.companion)))
    return groups, plan_of(groups, KEEP if algorithm.companion == "none" else BESIDE_KEEP)


def settings(optimizer: str = "sgd", budget: int = 8192) -> LearnerSettings:
    return LearnerSettings(optimizer=optimizer, tokens_per_micro_batch=budget)  # type: ignore[arg-type]


def learner_of(algorithm: AlgorithmSettings, budget: int = 8192) -> tuple[Learner, PlainBackend]:
    told, policy = settings(budget=budget), tiny_model()
    residents = build_residents(algorithm, told, tiny_spec(), VOCABULARY, policy)
    backend = PlainBackend(policy, told, None, residents)
    return Learner(backend, algorithm, budget, temperature=0.9), backend


def flat(backend: PlainBackend) -> Tensor:
    state = unpack(backend.weights(WeightVersion(0, 0)))
    return torch.cat([state[name].flatten() for name in sorted(state)])


def moved(backend: PlainBackend) -> Tensor:
    return flat(backend) - flat(PlainBackend(tiny_model(), settings()))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def rank_main(rank: int, world_size: int, folder: Path) -> None:
    group = join_group(rank, world_size, folder)
    results = {}
    for name, algorithm in ALGORITHMS.items():
        groups, plan = made_for(algorithm)
        backend = PlainBackend(tiny_model(), settings(), group)
        learner = Learner(
            backend,
            algorithm,
            60,
            0.9,
            rank=rank,
            world_size=world_size,
            all_reduce=sum_over(group),
        )
        by_id = {each.id: each for each in groups}
        rows = {row.index: row for row in rows_of(plan, by_id, learner.rows_needed(plan, 2), HELD)}
        results[name] = (learner.step(plan, rows, 2, 2, 1.0), flat(backend))
    torch.save(results, folder / f"{world_size}-{rank}.pt")
    dist.destroy_process_group()


def test_ranks_do_not_change_what_is_learnt(tmp_path: Path) -> None:
    for world_size in (1, 2, 4):
        run_ranks(rank_main, world_size, tmp_path)
    alone = torch.load(tmp_path / "1-0.pt")
    start = flat(PlainBackend(tiny_model(), settings()))
    for world_size in (2, 4):
        for rank in range(world_size):
            results = torch.load(tmp_path / f"{world_size}-{rank}.pt")
            for name, (metrics, weights) in alone.items():
                assert relative(results[name][1] - start, weights - start) < 1e-4, name
                assert results[name][0] == pytest.approx(metrics, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_micro_batches_do_not_change_what_is_learnt(name: str) -> None:
    groups, plan = made_for(ALGORITHMS[name])
    movements, reports = [], []
    for budget in (1, 70, 8192):
        learner, backend = learner_of(ALGORITHMS[name], budget)
        reports.append(learner.step(plan, rows_by_index(plan, groups), 1, 2, 1.0))
        movements.append(moved(backend))
    assert movements[0].norm() > 1e-3
    for movement, report in zip(movements[1:], reports[1:], strict=True):
        assert relative(movement, movements[0]) < 1e-4
        assert report == pytest.approx(reports[0], rel=1e-3, abs=1e-6)


def test_every_preset_makes_a_step_that_its_rewards_decide() -> None:
    """Those with a critic and those that compare rows: test_critic_learning, test_coupled_learning.
    Every group has samples that are right and wrong, but the last, in which all are right."""
    for name, preset in PRESETS.items():
        if preset.critic is not None or preset.is_coupled:
            continue
        groups = taught(paid_within(groups_of(SIZES, companion=preset.companion)))
        plan = plan_of(groups)
        is_companion_N = torch.from_numpy(plan.sample_N == COMPANION)
        rewards_N = is_companion_N.float()
        rewards_N[~is_companion_N] = torch.tensor([1.0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1])
        group_N = torch.from_numpy(plan.group_N)
        # Teams small enough that some have no right sample
        preset = replace(preset, pass_k=min(2, preset.pass_k))
        beside = ResidentRates({"process": 0.01}) if preset.implicit_reward else NO_RESIDENTS
        tokens_N, parts = torch.from_numpy(plan.num_tokens_N), {"right": rewards_N}
        stage = group_stage(preset, rewards_N, group_N, None, tokens_N, parts, is_companion_N)
        columns = {column: values.numpy() for column, values in stage.coefficients.items()}
        staged = replace(plan, coefficients=columns)
        learner, backend = learner_of(preset)
        report = learner.step(staged, rows_by_index(staged, groups), 1, 2, 0.01, beside)
        assert report["updates"] >= 1 and report["skipped_updates"] == 0, name
        assert np.isfinite(list(report.values())).all(), name
        assert moved(backend).norm() > 1e-6, name


def test_the_loss_is_the_kept_tokens_mean() -> None:
    """Cross-entropy worked out from the policy's log-probs, mean over kept rows' tokens."""
    groups = groups_of(SIZES)
    plan = plan_of(groups, KEEP)
    rows = rows_by_index(plan, groups)
    kept = [row for row in rows.values() if row.coefficients["keep"]]
    logprob_T = evaluate(tiny_model(), kept, ("logprob",), 0.9)["logprob"].detach()
    learner, _ = learner_of(ALGORITHMS["sft"])
    report = learner.step(plan, rows, 1, 1, 1.0)
    assert report["loss"] == pytest.approx(-float(logprob_T.mean()), rel=1e-5)
    assert report["rows"] == 9
    assert report["tokens"] == len(logprob_T)


def test_a_teachers_loss_by_loops_over_the_vocabulary() -> None:
    """Of tokens that are young enough to train; the mean of KL(policy || teacher) by weight."""
    groups = taught(groups_of(SIZES))
    plan = plan_of(groups, KEEP)
    young = replace(plan, oldest_version=HELD.step)
    rows = {
        row.index: row
        for row in rows_of(plan, {g.id: g for g in groups}, range(len(plan.group_N)), HELD)
    }
    told = [int(row.loss_mask[np.asarray(row.same_version)].sum()) for row in rows.values()]
    young = replace(young, num_tokens_N=np.array(told, np.int32))
    model, total, count = tiny_model(), 0.0, 0
    for index, row in rows.items():
        if not row.coefficients["keep"]:
            continue
        ids = torch.from_numpy(row.token_ids.astype(np.int64))
        p_LV = torch.softmax(model(ids[None]).logits[0].double() / 0.9, -1).detach().numpy()
        group, sample = plan.group_N[index], plan.sample_N[index]
        all_said = groups[group].reference.likeliest[sample]
        places = np.flatnonzero(groups[group].trajectories[sample].loss_mask)
        for place, words, logprobs, weight in zip(places, *all_said, strict=True):
            if not row.same_version[place]:
                continue
            policy = [p_LV[place - 1, word] for word in words]
            policy.append(1 - sum(policy))
            parts = zip(policy, logprobs.tolist(), strict=True)
            total += weight * sum(p * (np.log(p) - log_q) for p, log_q in parts)
            count += 1
    assert 0 < count < sum(row.num_tokens for row in rows.values())
    learner, _ = learner_of(PRESETS["topk_distillation"], 70)
    report = learner.step(young, rows_by_index(young, groups), 1, 1, 0.1)
    assert report["tokens"] == count
    assert report["loss"] == pytest.approx(total / count, rel=1e-5)
    assert 0 < report["policy_top_mass"] < report["teacher_top_mass"] < 1


def test_updates_and_epochs_are_counted_and_move_on() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    rows = rows_by_index(plan, groups)
    reports = {}
    for epochs, updates in ((1, 1), (1, 3), (2, 3)):
        learner, _ = learner_of(GRPO)
        reports[epochs, updates] = learner.step(plan, rows, epochs, updates, 1.0)
        assert reports[epochs, updates]["updates"] == epochs * updates
    # Later updates see a policy that moved; the mismatch to the engine is read before that.
    assert mismatch_of(reports[2, 3]) == mismatch_of(reports[1, 3]) != {}
    assert reports[2, 3]["ratio_max"] > reports[1, 1]["ratio_max"]


def mismatch_of(report: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in report.items() if name.startswith("mismatch/")}


@pytest.mark.parametrize("name", ["masked tokens", "truncated rows", "grpo"])
def test_mismatch_is_that_of_kept_tokens_before_the_first_update(name: str) -> None:
    """Over all of the step's tokens where log-probs are recomputed, else over the first update's,
    apart for tokens that were sampled under the weights that the learner holds."""
    groups = groups_of(SIZES)
    plan = plan_of(groups, KEEP)
    rows = rows_by_index(plan, groups)
    is_whole = name != "grpo"
    counted = [r for r in rows.values() if r.coefficients["keep"] and (is_whole or r.index < 4)]
    logprob_T = evaluate(tiny_model(), counted, ("logprob",), 0.9)["logprob"].detach().numpy()
    columns = [(r.behaviour_logprobs[r.loss_mask], r.same_version[r.loss_mask]) for r in counted]
    behaviour_T, same_T = (np.concatenate(column) for column in zip(*columns, strict=True))
    learner, _ = learner_of(ALGORITHMS[name], 70)
    report = learner.step(plan, rows, 2, 2, 1.0)
    for kind, chosen in (("same_version", same_T), ("stale", ~same_T)):
        gap_T = np.abs(logprob_T - behaviour_T)[chosen]
        assert report[f"mismatch/{kind}/tokens"] == chosen.sum() > 0
        assert report[f"mismatch/{kind}/gap_mean"] == pytest.approx(gap_T.mean(), rel=1e-4)
        assert report[f"mismatch/{kind}/gap_max"] == pytest.approx(gap_T.max(), rel=1e-4)
    assert ("mismatch/stale/masked_share" in report) == (name == "masked tokens")
    assert ("mismatch/stale/truncated_share" in report) == (name == "truncated rows")


def test_tokens_of_unknown_versions_count_as_stale() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    by_id = {group.id: group for group in groups}
    rows = {row.index: row for row in rows_of(plan, by_id, range(12))}
    report = learner_of(GRPO)[0].step(plan, rows, 1, 1, 1.0)
    assert report["mismatch/stale/tokens"] == report["tokens"]
    assert not any(name.startswith("mismatch/same_version") for name in report)


def test_epochs_lower_the_loss() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    learner, _ = learner_of(ALGORITHMS["sft"])
    rows = rows_by_index(plan, groups)
    losses = [learner.step(plan, rows, 4, 1, 0.1)["loss"] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]


def test_epochs_equal_repeated_steps_on_the_same_plan() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    rows = rows_by_index(plan, groups)
    once, in_one_step = learner_of(GRPO)
    once.step(plan, rows, 3, 2, 0.5)
    often, step_by_step = learner_of(GRPO)
    for _ in range(3):
        often.step(plan, rows, 1, 2, 0.5)
    assert torch.equal(flat(in_one_step), flat(step_by_step))


def test_the_proximal_policy_is_that_before_the_first_update() -> None:
    """With one update the ratio is 1 by definition; later updates leave the proximal behind."""
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    rows = rows_by_index(plan, groups)
    learner, _ = learner_of(replace(GRPO, proximal="learner"))
    assert learner.step(plan, rows, 1, 1, 1.0)["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    learner, _ = learner_of(replace(GRPO, proximal="learner"))
    assert learner.step(plan, rows, 2, 1, 1.0)["ratio_max"] > 1.001


def test_values_of_the_random_policy_are_measured_from_the_step_s_start() -> None:
    """Whole distributions of the policy before the step and after its first update, over the tokens
    that another one of their row follows."""
    groups = groups_of(SIZES)
    plan = plan_of(groups, KEEP)
    rows = rows_by_index(plan, groups)
    algorithm = ALGORITHMS["random policy's values"]
    model = tiny_model()
    once = Learner(PlainBackend(model, settings(budget=70)), algorithm, 70, temperature=0.9)
    assert once.step(plan, rows, 1, 1, 1.0)["successor_value"] == 0.0
    kept = [row for row in rows.values() if row.coefficients["keep"]]
    means = []
    for policy in (tiny_model(), model):
        found = evaluate(policy, kept, ("logsumexp", "vocab_mean"), 0.9)
        means.append((found["vocab_mean"] - found["logsumexp"]).detach())
    risen = (means[1] - means[0]).split([row.num_tokens for row in kept])
    wanted = torch.cat([torch.cat([part[1:], torch.zeros(1)]) for part in risen]).mean()
    twice, _ = learner_of(algorithm, 70)
    report = twice.step(plan, rows, 2, 1, 1.0)
    assert abs(float(wanted)) > 1e-4
    assert report["successor_value"] == pytest.approx(float(wanted) / 2, rel=1e-3)


def test_the_shortcut_for_a_single_update_equals_the_pass() -> None:
    """A KL too small to count, charged to the reward, forces the recomputing pass."""
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    rows = rows_by_index(plan, groups)
    algorithm = replace(GRPO, proximal="learner")
    charged, with_kl = learner_of(replace(algorithm, kl=KlSettings(1e-12, "k1", "reward")))
    charged.step(plan, rows, 1, 1, 1.0)
    uncharged, without_kl = learner_of(replace(algorithm, kl=KlSettings()))
    uncharged.step(plan, rows, 1, 1, 1.0)
    assert relative(moved(with_kl), moved(without_kl)) < 1e-4


def test_nothing_to_train_moves_nothing() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups, [0.0] * 12)
    learner, backend = learner_of(GRPO)
    report = learner.step(plan, rows_by_index(plan, groups), 2, 2, 1.0)
    assert report == {"updates": 0, "skipped_updates": 0, "tokens": 0, "rows": 0}
    assert moved(backend).abs().max() == 0


def test_a_row_without_trained_tokens_takes_no_part() -> None:
    groups = groups_of(SIZES)
    silent = groups[0].trajectories[0]
    silent = replace(silent, loss_mask=np.zeros_like(silent.loss_mask))
    groups[0] = replace(groups[0], trajectories=(silent, *groups[0].trajectories[1:]))
    results = []
    for keep in (None, [0.0] + [1.0] * 11):
        plan = plan_of(groups, keep)
        learner, backend = learner_of(ALGORITHMS["whitened"])
        learner.step(plan, rows_by_index(plan, groups), 1, 1, 1.0)
        results.append(flat(backend))
    assert torch.equal(*results)


def test_an_infinite_advantage_skips_its_update_only() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    plan.coefficients["advantage"][0] = np.inf
    learner, backend = learner_of(GRPO)
    report = learner.step(plan, rows_by_index(plan, groups), 1, 3, 1.0)
    assert (report["updates"], report["skipped_updates"]) == (2, 1)
    assert np.isfinite([report["loss"], report["grad_norm"]]).all()
    assert torch.isfinite(flat(backend)).all()


def test_a_missing_row_is_named() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    rows = rows_by_index(plan, groups)
    del rows[5]
    with pytest.raises(ValueError, match=r"rank 0 of 1 was not given its rows \[5\]"):
        learner_of(GRPO)[0].step(plan, rows, 1, 1, 1.0)


def test_groups_other_than_the_planned_ones_are_refused() -> None:
    plan, others = plan_of(groups_of(SIZES)), groups_of(SIZES, seed=1)
    with pytest.raises(ValueError, match="the plan was made from other trajectories"):
        rows_of(plan, {group.id: group for group in others}, range(12))


def test_a_step_starts_no_threads_of_its_own() -> None:
    groups = groups_of(SIZES)
    plan = plan_of(groups)
    before = threading.active_count()
    learner_of(GRPO)[0].step(plan, rows_by_index(plan, groups), 1, 1, 1.0)
    assert threading.active_count() == before
