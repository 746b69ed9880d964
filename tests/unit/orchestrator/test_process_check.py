"""What a run file with an implicit reward model is refused for, beside its algorithm's rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.process_check import process_problems
from tests.unit.orchestrator.tiny_run import load

KEY = "stages[1].algorithm.implicit_reward"
PRIME = "stages.rl.algorithm=prime"


@pytest.mark.parametrize("backend", ["fsdp", "deepspeed"])
def test_a_backend_that_cannot_hold_the_model_is_refused(tmp_path: Path, backend: str) -> None:
    run_file = load(tmp_path, PRIME, f"learner.backend={backend}")
    assert list(process_problems(run_file)) == [
        f"{KEY}: learner.backend {backend} cannot train a reward model beside the policy: choose "
        "plain, or take an algorithm without one, such as rloo"
    ]


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    run_file = load(tmp_path, PRIME, "model.lora={rank: 4}")
    told = [each for each in cross_check(run_file) if each.startswith(KEY)]
    assert told == [
        f"{KEY}: with model.lora the policy is an adapter over weights that stay as they are, and "
        "a whole model beside it is not supported: remove model.lora, or take an algorithm without "
        "one, such as rloo"
    ]


def test_a_folder_that_is_too_short_or_absent_is_told(tmp_path: Path) -> None:
    absent = load(tmp_path, PRIME, "stages.rl.algorithm.implicit_reward.path=./nowhere")
    assert list(process_problems(absent)) == [f"{KEY}.path: there is no folder './nowhere'"]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    short = load(tmp_path, PRIME, f"stages.rl.algorithm.implicit_reward.path={folder}")
    [told] = process_problems(short)
    assert told.startswith(f"{KEY}.path: the model in '{folder}' was made for at most 8 tokens")


@pytest.mark.parametrize(
    "overrides",
    [
        (PRIME,),
        (PRIME, "learner.backend=some.module:Backend"),
        (PRIME, "learner.backend=fsdp", "stages.rl.kind=generate"),
        ("stages.rl.algorithm=rloo", "learner.backend=fsdp"),
        (PRIME, "stages.rl.algorithm.implicit_reward=null", "learner.backend=fsdp"),
    ],
)
def test_what_goes_together_passes(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Nobody can know of a plug-in before it is loaded; a stage that only samples has no model."""
    assert list(process_problems(load(tmp_path, *overrides))) == []
