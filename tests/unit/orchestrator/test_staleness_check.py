from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.staleness_check import staleness_problems
from tests.unit.orchestrator.tiny_run import load

REFUSED = [
    ("rollout.max_staleness=-1", "rollout.max_staleness: is -1, must be at least 0"),
    ("stages.rl.max_staleness=-1", "stages[1].max_staleness: is -1, must be at least 0"),
    ("rollout.max_token_age=-1", "rollout.max_token_age: is -1, must be at least 0"),
    ("rollout.max_staleness=3 rollout.max_token_age=1",
     "rollout.when_too_old: is 'wait', but rollout.max_token_age 1 is below max_staleness 3"),
    ("rollout.when_too_old=mask_tokens", "rollout.when_too_old: 'mask_tokens' has no effect"),
    ("rollout.max_staleness=1 rollout.max_token_age=1 rollout.when_too_old=mask_tokens",
     "rollout.when_too_old: 'mask_tokens' has no effect"),
    ("rollout.oversample=0.5", "rollout.oversample: is 0.5, must be at least 1"),
    ("rollout.oversample=1.5", "rollout.oversample: 1.5 needs rollout.when_too_old "
     "drop_and_replace"),
    ("rollout.oversample=1.5 rollout.when_too_old=drop_and_replace stages.rl.max_staleness=1",
     "rollout.oversample: 1.5 needs max_staleness 0"),
    ("rollout.oversample=1.5 rollout.when_too_old=drop_and_replace run.deterministic=true",
     "rollout.oversample: is 1.5, but run.deterministic needs 1"),
    ("rollout.oversample=1.5 rollout.when_too_old=drop_and_replace rollout.max_staleness=1 "
     "rollout.overtaken=carry_over", "rollout.when_too_old: 'drop_and_replace' would make anew"),
    ("rollout.oversample=1.5 rollout.overtaken=carry_over",
     "rollout.overtaken: 'carry_over' needs max_staleness of at least 1, and stage 'rl' has 0"),
    ("rollout.oversample=2.5 rollout.overtaken=carry_over rollout.max_staleness=1",
     "rollout.oversample: is 2.5, must be at most 2 with overtaken carry_over"),
    ("rollout.overtaken=carry_over", "rollout.overtaken: 'carry_over' has no effect"),
    ("run.deterministic=true stages.rl.max_staleness=2",
     "stages[1].max_staleness: is 2, but run.deterministic needs 0"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refuses(tmp_path: Path, overrides: str, message: str) -> None:
    problems = cross_check(load(tmp_path, *overrides.split(" ")))
    assert any(problem.startswith(message) for problem in problems), problems


FITS = [
    "rollout.max_staleness=4",
    "rollout.max_staleness=4 rollout.max_token_age=4",
    "rollout.max_staleness=4 rollout.max_token_age=2 rollout.when_too_old=drop_and_replace",
    "stages.rl.max_staleness=4 rollout.max_token_age=2 rollout.when_too_old=mask_tokens",
    "rollout.oversample=1.25 rollout.when_too_old=drop_and_replace",
    "rollout.oversample=2 rollout.overtaken=carry_over rollout.max_staleness=1",
    "rollout.oversample=1.25 rollout.overtaken=carry_over rollout.max_staleness=2 "
    "rollout.max_token_age=0 rollout.when_too_old=mask_tokens",
    "run.deterministic=true rollout.dispatch=longest_first",
]


@pytest.mark.parametrize("overrides", FITS)
def test_fits(tmp_path: Path, overrides: str) -> None:
    assert list(staleness_problems(load(tmp_path, *overrides.split(" ")))) == []


def test_a_stage_s_own_staleness_counts(tmp_path: Path) -> None:
    loaded = load(tmp_path, "rollout.max_staleness=3", "stages.rl.max_staleness=1")
    assert [loaded.max_staleness(stage) for stage in loaded.stages] == [3, 1]
