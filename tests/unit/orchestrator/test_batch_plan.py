"""The plan's words and numbers, and what roles ask for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from manta.orchestrator import batch_plan, survey
from manta.orchestrator.role_needs import RoleNeed, placement_needs, role_needs
from tests.unit.orchestrator.tiny_run import load


def plan(folder: Path, stage: int, *overrides: str) -> str:
    loaded = load(folder, *overrides)
    return "\n".join(batch_plan.describe(loaded, loaded.stages[stage], survey.look(loaded)))


def test_the_plan_of_a_stage_that_samples(tmp_path: Path) -> None:
    assert plan(tmp_path, 1).splitlines() == [
        "8 prompts x 4 samples = 32 completions a step, at most about 256 tokens (mean prompt 4.0 "
        "tokens, with all 4 new tokens used)",
        "about 2 micro-batches an update of at most 128 tokens on 1 learner rank",
        "5 steps of 1 update (1 x 1 epoch): 5 updates, 40 prompts = 0.50 passes over 80 tasks; "
        "learning rate 1e-05",
        "on-policy: at most 8 groups in flight, every sample from the newest weights when its step "
        "begins",
        "the ratio's denominator is the engine's own log-probs, nothing is recomputed",
        "100 prompts measured, the longest is task arithmetic/0+2 with 4",
        "evaluation every 5 steps: 10 held-out prompts x 1 sample at temperature 0, accuracy by "
        "'correct'",
        "leaves stage:rl (weights) in products/rl",
    ]


def test_the_plan_of_a_stage_with_given_answers(tmp_path: Path) -> None:
    assert plan(tmp_path, 0).splitlines()[:5] == [
        "4 prompts with given answers a step, at most about 28 tokens (mean prompt 4.0 tokens, "
        "with the longest answer)",
        "about 1 micro-batch an update of at most 128 tokens on 1 learner rank",
        "3 steps of 1 update (1 x 1 epoch): 3 updates, 12 prompts = 0.15 passes over 80 tasks; "
        "learning rate 1e-05",
        "answers are given, so no sample can be stale",
        "no importance ratio: cross-entropy needs no log-probs of a behaviour policy",
    ]


WORDS = [
    ("rollout.max_staleness=2", "at most 24 groups in flight, so a sample may be up to 2 versions "
     "behind the weights that learn from it"),
    ("rollout.max_staleness=2 rollout.max_token_age=1 rollout.when_too_old=mask_tokens",
     "weights that learn from it; tokens that are more than 1 version behind leave the loss"),
    ("rollout.oversample=1.3 rollout.overtaken=carry_over rollout.max_staleness=2",
     "11 groups begin, the first 8 to finish train; those overtaken go on, and a sample may be up "
     "to 2 versions behind"),
    ("stages.rl.algorithm.filters=[zero_variance, {name: accuracy_band}, "
     "{name: max_variance, keep: 2}]",
     "filters: groups of equal rewards are replaced by others; groups of which fewer than 20% or "
     "more than 80% are right by 'correct' are replaced by others; the 2 samples of a group whose "
     "rewards vary most train\nabout 1 micro-batch an update"),
    ("stages.rl.algorithm.filters=[{name: process_consistency, keep: 2}]",
     "filters: of a group 2 samples train, right ones by 'correct' of the highest 'process' and as "
     "many wrong ones of the lowest"),
    ("rollout.redundant_samples=2", "a group begins 6 samples and is complete with the first 4"),
    ("rollout.cap.tokens=3", "a sample has at most 3 tokens; one that a bound ends trains as it "
     "is"),
    ("rollout.cap.medians=4 rollout.cap.then=mask",
     "a sample has at most 4 times the running median of lengths; one that a bound ends carries "
     "no loss"),
    ("rollout.oversample=1.3 rollout.when_too_old=drop_and_replace",
     "on-policy: 11 groups begin, the first 8 to finish train; those overtaken train 8 at a time, "
     "in steps of their own"),
    ("stages.rl.updates_per_step=4",
     "about 1 micro-batch an update of at most 128 tokens on 1 learner rank"),
    ("stages.rl.updates_per_step=4 stages.rl.epochs_per_step=2",
     "5 steps of 8 updates (4 x 2 epochs): 40 updates, 40 prompts"),
    ("learner.workers=2", "about 1 micro-batch an update of at most 128 tokens on each of 2 "
     "learner ranks"),
    ("stages.rl.algorithm.proximal=learner", "the ratio's denominator is the learner's own "
     "log-probs: with one update a step they need no pass of their own"),
    ("stages.rl.algorithm.proximal=learner stages.rl.updates_per_step=2", "the ratio's denominator "
     "is recomputed by the learner in one pass without gradients before the step's first update"),
    ("stages.rl.algorithm.proximal=learner "
     "stages.rl.algorithm.kl={coef: 1, placement: reward, estimator: k1}",
     "recomputed by the learner in one pass without gradients before the step's first update; KL "
     "to the weights at the start of the stage, 1 x k1 in the reward"),
    ("stages.rl.algorithm.proximal=learner rollout.max_staleness=1", "behind the weights that "
     "learn from it; note: nothing corrects for it, see off_policy in docs/run-file.md"),
    ("stages.rl.algorithm.proximal=learner "
     "stages.rl.algorithm.off_policy={correction: truncate, high: 2}", "need no pass of their own; "
     "each token weighs as much as its probability under learner over engine, at most 2"),
    ("stages.rl.algorithm=icepop", "learner over engine, and 0 below 0.5 or above 5"),
    ("stages.rl.algorithm.proximal=learner "
     "stages.rl.algorithm.off_policy={correction: weight, level: sequence}",
     "each row weighs as much as its probability under learner over engine"),
    ("stages.rl.algorithm.kl.coef=0.04", "nothing is recomputed; KL to the weights at the start of "
     "the stage, 0.04 x k3 in the loss"),
    ("stages.rl.algorithm.kl.coef=0.04 stages.rl.algorithm.kl.target=6", "0.04 x k3 in the loss, "
     "from there on whatever keeps it at 6 nats a sample"),
    ("stages.rl.algorithm={name: clip_cov, proximal: learner}", "the ratio's denominator is "
     "recomputed by the learner in one pass"),
    ("stages.rl.algorithm=ppo", "critic: a model of its own that starts from the policy, learning "
     "rate 1e-05; its values are computed in one pass without gradients before the step's first"),
    ("stages.rl.algorithm=ppo stages.rl.algorithm.critic.model=shared "
     "stages.rl.algorithm.critic.learning_rate=0.1 stages.rl.algorithm.critic.warmup_steps=2",
     "critic: a head on the policy's trunk, learning rate 0.1; its values are computed in one pass "
     "without gradients before the step's first update; it trains alone for the first 2 steps"),
    ("stages.rl.algorithm=prime", "nothing is recomputed\nimplicit reward model: a model of its "
     "own that starts from the policy, learning rate 1e-06; a token's reward is 0.05 x its "
     "log-ratio to the weights at the start of the stage, before the model learns from the step; a "
     "row is right whose reward is above 0.5"),
    ("learner.warmup_steps=1 stages.rl.learning_rate=1e-3",
     "learning rate 0.001 after 1 step of warm-up"),
    ("model.context=6 rollout.max_new_tokens=5 stages.warm.algorithm=grpo",
     "note: with a context of 6 that task's answers end after 2 of 5 new tokens"),
    ("stages.rl.evaluate=null", "no evaluation"),
    ("evaluate.prompts=500", "evaluation every 5 steps: 20 held-out prompts x 1 sample"),
    ("rollout.placement=colocated", "engines sleep while it trains, and wake with its new weights "
     "at every step"),
    ("rollout.placement=colocated stages.rl.algorithm=sft", "weights at every evaluation"),
    ("stages.rl.kind=generate", "generate stage, trains nothing; 5 steps"),
    ("stages.rl.kind=evaluate", "evaluate stage, trains nothing"),
    ("stages.rl.kind=evaluate", "leaves stage:rl (report) in products/rl"),
    ("stages.rl={name: rl, kind: annotate, trajectories: ., reference_logprobs: true, "
     "reference: {model: initial}}", "annotate stage, trains nothing: scores every group once with "
     "its reward and the log-probs of initial, 1 group a step"),
    ("stages.rl={name: rl, kind: merge, models: [stage:warm, initial], weights: [3, 1]}",
     "merge stage: the average of stage:warm x 0.75, initial x 0.25; the policy goes on from it"),
    ("stages.rl.start_from=stage:warm", "starts from the weights of stage:warm"),
    ("stages.rl.algorithm.kl.coef=0.1 reference.refresh={every_steps: 4, how: ema}", "KL to the "
     "weights at the start of the stage, which move towards the policy's every 4 steps (decay "
     "0.99), 0.1 x k3 in the loss"),
    ("stages.rl.kind=evaluate", "evaluation once: 10 held-out prompts"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), WORDS, ids=[o for o, _ in WORDS])
def test_words(tmp_path: Path, overrides: str, words: str) -> None:
    assert words in plan(tmp_path, 1, *re.split(r" (?=\w+\.)", overrides))


def test_written_trajectories_are_named(tmp_path: Path) -> None:
    told = plan(tmp_path, 0, f"stages.warm.trajectories={tmp_path}")
    assert f"learns from the trajectories in {tmp_path}" in told


def test_roles_ask_for_what_they_use(tmp_path: Path) -> None:
    loaded = load(tmp_path, "rollout.threads=4", "rollout.workers=2", "environment.workers=3")
    assert role_needs(loaded) == (
        RoleNeed("environment", 3, 0.1, 0),
        RoleNeed("rollout", 2, 4.0, 0),
        RoleNeed("reward", 1, 0.1, 0),
        RoleNeed("learner", 1, 0.5, 0),
    )
    assert placement_needs(loaded) == [
        ("environment", 3, 0.1), ("rollout", 2, 4.0), ("reward", 1, 0.1), ("learner", 1, 0.5),
    ]  # fmt: skip


def test_shared_gpus_are_the_learner_s(tmp_path: Path) -> None:
    gpus = ("rollout.engine=vllm", "rollout.workers=2", "rollout.devices=2")
    for overrides, asked in (((), [4, 0]), (("rollout.placement=colocated",), [0, 4])):
        needs = role_needs(load(tmp_path, *gpus, "learner.workers=4", *overrides))
        by_role = {need.role: need.workers * need.gpus for need in needs}
        assert [by_role["rollout"], by_role["learner"]] == asked


def test_a_learner_that_computes_on_gpus_has_one_a_rank(tmp_path: Path) -> None:
    needs = role_needs(load(tmp_path, "learner.devices=1", "learner.workers=4"))
    assert next(n for n in needs if n.role == "learner") == RoleNeed("learner", 4, 0.5, 1)


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        ("stages.rl.algorithm.kl.coef=1",
         ["environment", "rollout", "reward", "reference", "learner"]),
        ("stages.rl.kind=evaluate stages.warm.kind=evaluate", ["environment", "rollout", "reward"]),
        ("stages.rl.algorithm=sft evaluate=null", ["environment", "reward", "learner"]),
        ("stages.rl.algorithm=sft evaluate=null reward=null", ["environment", "learner"]),
    ],
)  # fmt: skip
def test_roles_that_no_stage_needs_are_left_out(
    tmp_path: Path, overrides: str, roles: list[str]
) -> None:
    loaded = load(tmp_path, *overrides.split())
    assert [need.role for need in role_needs(loaded)] == roles


def test_the_defaults_of_all_roles_fit_two_cores(tmp_path: Path) -> None:
    loaded = load(tmp_path, "stages.rl.algorithm.kl.coef=1")
    assert sum(count * cpus for _, count, cpus in placement_needs(loaded)) <= 2


@pytest.mark.parametrize(
    ("overrides", "groups"),
    [
        ("", 8),
        ("environment.workers=2", 4),
        ("environment.workers=99", 1),
        ("environment.groups_per_call=3", 3),
        ("rollout.redundant_samples=2", 1),
        ("rollout.redundant_samples=2 environment.groups_per_call=3", 3),
        ("stages.rl.algorithm.filters=[zero_variance]", 1),
    ],
)
def test_groups_travel_together_unless_one_that_ends_early_makes_room(
    tmp_path: Path, overrides: str, groups: int
) -> None:
    loaded = load(
        tmp_path, "environment.groups_per_call=0", "stages.rl.prompts_per_step=32",
        *overrides.split(),
    )  # fmt: skip
    assert loaded.groups_per_call(loaded.stages[1]) == groups
