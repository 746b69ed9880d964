"""What a run file with a critic is refused for, beside the algorithm's own rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.actors.backends.settings import BACKEND_NAMES, HOLDING_RESIDENTS
from manta.orchestrator import critic_check
from manta.orchestrator.critic_check import critic_problems
from tests.unit.orchestrator.tiny_run import load


def test_a_backend_that_cannot_hold_a_critic_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(HOLDING_RESIDENTS) <= set(BACKEND_NAMES)
    ppo = load(tmp_path, "stages.rl.algorithm=ppo")
    assert list(critic_problems(ppo)) == []
    monkeypatch.setattr(critic_check, "HOLDING_RESIDENTS", ("another",))
    assert list(critic_problems(ppo)) == [
        "stages[1].algorithm.critic: learner.backend plain cannot train a critic beside the "
        "policy: choose another, or take an algorithm without one, such as grpo"
    ]
    assert list(critic_problems(load(tmp_path))) == []
    # Nobody can know of a plug-in before it is loaded, and a stage that only samples has no critic.
    plug_in = load(tmp_path, "stages.rl.algorithm=ppo", "learner.backend=some.module:Backend")
    assert list(critic_problems(plug_in)) == []
    generate = load(tmp_path, "stages.rl.algorithm=ppo", "stages.rl.kind=generate")
    assert list(critic_problems(generate)) == []


def test_a_folder_that_is_too_short_or_broken_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "critic"
    folder.mkdir()
    overrides = ("stages.rl.algorithm=ppo", f"stages.rl.algorithm.critic.path={folder}")
    [told] = critic_problems(load(tmp_path, *overrides))
    assert told.startswith(f"stages[1].algorithm.critic.path: cannot read {folder}/config.json")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    assert list(critic_problems(load(tmp_path, *overrides))) == [
        f"stages[1].algorithm.critic.path: the model in '{folder}' was made for at most 8 tokens, "
        "model.context is 24"
    ]
