"""Stages that learn from a teacher's distributions: what passes, what is refused, what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.batch_plan import describe
from manta.orchestrator.config import RunFile
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.lanes import train_lane
from manta.orchestrator.memory import estimate
from manta.orchestrator.model_names import steps_named
from manta.orchestrator.products import Products
from manta.orchestrator.reference_use import needs_reference
from manta.orchestrator.survey import look
from tests.unit.orchestrator.tiny_run import load

TAUGHT = (
    "stages.rl.algorithm={name: topk_distillation, teacher: {top_k: 5}}",
    "stages.rl.reference={model: 'stage:warm'}",
)
WORDS = 14
"""Of the tokenizer: twelve characters, padding and the end."""


def plan(loaded: RunFile) -> str:
    return "\n".join(describe(loaded, loaded.stages[1], look(loaded)))


def test_a_teacher_passes_and_needs_no_reward(tmp_path: Path) -> None:
    loaded = load(tmp_path, *TAUGHT, "stages.rl.reward=null", "stages.rl.evaluate=null")
    assert cross_check(loaded) == []
    assert needs_reference(loaded, loaded.stages[1])
    lane = train_lane(loaded, loaded.stages[1], Products(tmp_path))
    assert (lane.uses_reference, lane.reference_top_k) == (True, 5)
    assert train_lane(loaded, loaded.stages[0], Products(tmp_path)).reference_top_k == 0
    assert look(loaded).vocab_size == WORDS
    whole = f"stages.rl.algorithm.teacher.top_k={WORDS}"
    assert cross_check(load(tmp_path, *TAUGHT, whole)) == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            (f"stages.rl.algorithm.teacher.top_k={WORDS + 1}",),
            "stages[1].algorithm.teacher.top_k: is 15, and the tokenizer has 14 tokens",
        ),
        (
            ("stages.rl.reference=null",),
            "stages[1].reference: algorithm 'topk_distillation' learns from a teacher, and by "
            "default the reference is the policy itself",
        ),
        (
            ("stages.rl.algorithm.samples_from=given", "rollout.temperature=0.7"),
            "stages[1].algorithm: 'topk_distillation' compares distributions on given answers",
        ),
        (
            ("stages.rl.reference={model: 'stage:warn'}",),
            "stages[1].reference.model: there is no stage 'warn'",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, overrides: tuple[str, ...], told: str) -> None:
    problems = cross_check(load(tmp_path, *TAUGHT, *overrides))
    assert len(problems) == 1 and problems[0].startswith(told), problems


def test_the_plan_says_what_is_learnt_from_whom(tmp_path: Path) -> None:
    assert (
        "the loss is KL(policy, teacher) over the 5 tokens that the teacher finds likeliest and "
        "all others together; the teacher is stage:warm"
    ) in plan(load(tmp_path, *TAUGHT))
    mixed = plan(load(tmp_path, *TAUGHT, "stages.rl.algorithm.teacher.interpolation=0.3"))
    assert "of both to their mixture, of which the teacher is 0.3" in mixed


def test_written_groups_are_scored_anew(tmp_path: Path) -> None:
    """An annotate stage writes log-probs, and not what else is likely."""
    annotated = (
        "stages.warm={name: warm, kind: generate, steps: 3, evaluate: null, "
        "algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}}}",
        "stages.rl.trajectories=stage:warm",
        "stages.rl.algorithm={name: topk_distillation, teacher: {top_k: 5}}",
        "stages.rl.reference={model: initial}",
    )
    loaded = load(tmp_path, *annotated)
    assert cross_check(loaded) == []
    assert needs_reference(loaded, loaded.stages[1])


MIXED = "stages.rl.reference={combine: {'stage:warm': 2.0, initial: -1.0}}"
ADAPTIVE = (
    "stages.rl.reference={combine: {'stage:warm': 1}, contrast: {toward: 'stage:warm', "
    "away: initial}}"
)


def test_a_combination_passes_and_is_said_back(tmp_path: Path) -> None:
    for told, said in (
        (MIXED, "the model with the logits 2 x stage:warm - 1 x initial"),
        (ADAPTIVE, "1 x stage:warm + w x (stage:warm - initial)"),
    ):
        loaded = load(tmp_path, TAUGHT[0], told)
        assert cross_check(loaded) == []
        assert said in plan(loaded)
    # For a KL penalty, and said once for all stages
    penalty = "stages.rl.algorithm.kl.coef=0.1"
    top = MIXED.removeprefix("stages.rl.")
    assert cross_check(load(tmp_path, penalty, top)) == []
    assert cross_check(load(tmp_path, top)) != []


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("{combine: {'stage:warn': 1}}", ".combine: there is no stage 'warn' before this one"),
        ("{combine: {'stage:rl': 1}}", ".combine: 'stage:rl' is this very stage"),
        ("{combine: {'ema(0.9)': 1}}", ".combine: 'ema(0.9)': a moving average follows"),
        (
            "{combine: {initial: 1}, contrast: {toward: initial, away: 'stage:warn'}}",
            ".contrast.away: there is no stage 'warn'",
        ),
        ("{combine: {initial: 1}, model: 'stage:warm'}", ".combine: the reference is 'stage:warm'"),
        ("{combine: {initial: 1}, refresh: {}}", ".refresh: a combination of several models"),
        ("{combine: {initial: 0}}", ".combine: no model counts"),
        (
            "{contrast: {toward: initial, away: 'stage:warm'}}",
            ".combine: no model counts",
        ),
        (
            "{combine: {initial: 1}, contrast: {toward: initial, away: initial}}",
            ".contrast: goes from 'initial' to itself",
        ),
        (
            "{combine: {initial: 1}, contrast: {toward: initial, away: 'stage:warm', least: 0}}",
            ".contrast.least: is 0, must be above 0",
        ),
        (
            "{combine: {initial: 1}, contrast: {toward: initial, away: 'stage:warm', scale: -1}}",
            ".contrast.scale: is -1, must be 0 or more",
        ),
    ],
)
def test_a_combination_that_cannot_be_is_refused(tmp_path: Path, reference: str, told: str) -> None:
    problems = cross_check(load(tmp_path, TAUGHT[0], f"stages.rl.reference={reference}"))
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"stages[1].reference{told}"), problems


def test_an_adapters_reference_is_no_combination(tmp_path: Path) -> None:
    problems = cross_check(load(tmp_path, TAUGHT[0], MIXED, "model.lora={rank: 2}"))
    assert any("names of weights need model.lora: null" in told for told in problems)


def test_every_model_counts_in_the_memory_of_a_worker_and_likely_tokens_in_groups(
    tmp_path: Path,
) -> None:
    def parts(*overrides: str) -> dict[tuple[str, str], int]:
        loaded = load(tmp_path, *overrides)
        found = estimate(loaded, look(loaded))
        return {(part.role, part.what): part.bytes for part in found}

    one, two = parts(*TAUGHT), parts(TAUGHT[0], MIXED)
    for what in ("weights", "logits of a chunk"):
        assert two["reference", what] == 2 * one["reference", what]
    assert two["reference", "one layer's activations"] > one["reference", "one layer's activations"]
    plain = parts("stages.rl.algorithm.kl.coef=0.1")
    kept = ("object store", "groups until a checkpoint covers them")
    assert one[kept] == plain[kept] * (17 + 8 * 6) // 17


def test_steps_that_a_combination_names_keep_their_checkpoints(tmp_path: Path) -> None:
    loaded = load(tmp_path, TAUGHT[0], "stages.rl.reference={combine: {'step:2': 1}}")
    assert cross_check(loaded) == []
    assert steps_named(loaded) == {2}
