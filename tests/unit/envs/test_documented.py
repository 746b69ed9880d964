"""What the documents say of environments and rewards is so."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from manta.envs.registry import ENVS, REWARDS, build
from manta.envs.rewards.artifact import ArtifactReward

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(("page", "registry"), [("environments", ENVS), ("rewards", REWARDS)])
def test_each_stands_in_its_table_with_every_option(page: str, registry: dict[str, str]) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    for name, place in registry.items():
        rows = [line for line in text.splitlines() if re.match(rf"\| (`\w+`, )?`{name}`", line)]
        told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", " ".join(rows)))))
        module, _, attribute = place.partition(":")
        options = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
        assert {each for each in options if each != "options"} <= told, name


def test_the_environment_of_one_s_own_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "environments.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "trivia.py").write_text(code)
    rows = [{"question": f"Is {i} a number?", "answer": "yes"} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.syspath_prepend(tmp_path)
    env = build("env", "trivia:Trivia", {"train": str(tmp_path / "rows.jsonl"), "eval_size": 2})
    assert len(env.source("train")) == 3
    env.validate(env.source("train").task(0))
    assert env.source("eval").task(0).prompt == "Is 3 a number?\n"


def test_the_reward_of_one_s_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "rewards.md").read_text(encoding="utf-8")
    [code] = re.findall(r"`polite.py`:\n\n((?:    .*\n|\n)+)", text)
    (tmp_path / "polite.py").write_text(inspect.cleandoc(code))
    monkeypatch.syspath_prepend(tmp_path)
    reward = build("reward", "polite:Polite", {"word": "thanks"})
    assert isinstance(reward, ArtifactReward)
    task = build("env", "arithmetic", {}).source("eval").task(0)
    assert reward.judge(task, "132, thanks") == 1.0
    assert reward.judge(task, "132") == 0.0
