"""Stages that learn from a teacher's distributions: what passes, what is refused, what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.batch_plan import describe
from manta.orchestrator.config import RunFile
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.lanes import train_lane
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
