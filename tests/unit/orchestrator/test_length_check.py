from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.length_check import length_problems
from tests.unit.orchestrator.tiny_run import TINY, load

REFUSED = [
    ("rollout.redundant_samples=-1", "rollout.redundant_samples: is -1, must be at least 0"),
    ("rollout.redundant_samples=2 run.deterministic=true",
     "rollout.redundant_samples: is 2, but run.deterministic needs 0"),
    ("rollout.redundant_samples=2 rollout.ignore_eos=true",
     "rollout.redundant_samples: is 2, but with rollout.ignore_eos"),
    ("rollout.redundant_samples=2 env.tries=2",
     "rollout.redundant_samples: is 2, but stage 'rl' has an environment of several turns"),
    ("rollout.cap.tokens=5", "rollout.cap.tokens: is 5, must lie in 1..4"),
    ("rollout.cap.tokens=0", "rollout.cap.tokens: is 0, must lie in 1..4"),
    ("rollout.cap.tokens=4", "rollout.cap.tokens: 4 is rollout.max_new_tokens"),
    ("rollout.cap.then=mask", "rollout.cap: exactly one of tokens and medians is needed, found "
     "neither"),
    ("rollout.cap.tokens=2 rollout.cap.medians=4",
     "rollout.cap: exactly one of tokens and medians is needed, found both"),
    ("rollout.cap.medians=1", "rollout.cap.medians: is 1, must be above 1"),
    ("rollout.cap.tokens=2 rollout.ignore_eos=true", "rollout.cap: with rollout.ignore_eos"),
    ("rollout.simulated.length_prompt_share=1.5",
     "rollout.simulated.length_prompt_share: is 1.5, must lie in 0..1"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refuses(tmp_path: Path, overrides: str, message: str) -> None:
    problems = cross_check(load(tmp_path, *overrides.split(" ")))
    assert any(problem.startswith(message) for problem in problems), problems


@pytest.mark.parametrize(
    "overrides",
    [
        "rollout.redundant_samples=2",
        "rollout.redundant_samples=2 rollout.max_staleness=2",
        "rollout.cap.tokens=3",
        "rollout.cap.tokens=4 rollout.cap.then=mask",
        "rollout.cap.medians=4 run.deterministic=true",
        "rollout.cap.medians=4 rollout.cap.then=mask rollout.max_staleness=1",
    ],
)
def test_fits(tmp_path: Path, overrides: str) -> None:
    assert list(length_problems(load(tmp_path, *overrides.split(" ")))) == []


def test_where_nothing_is_sampled_to_train_it_has_no_effect(tmp_path: Path) -> None:
    imitation = TINY.replace("{name: grpo, samples_per_prompt: 4, kl: {coef: 0.0}}", "sft")
    loaded = load(tmp_path, "rollout.redundant_samples=1", "rollout.cap.medians=2", text=imitation)
    problems = list(length_problems(loaded))
    assert [problem.split(":")[0] for problem in problems] == [
        "rollout.redundant_samples",
        "rollout.cap",
    ]
    assert all("has no effect" in problem for problem in problems)
