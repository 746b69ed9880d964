"""Which run files may put engines on the learner's device."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.colocation_check import colocation_problems
from manta.orchestrator.cross_check import cross_check
from tests.unit.orchestrator.tiny_run import load

REFUSED = [
    ("rollout.max_staleness=2",
     "rollout.max_staleness: is 2, but engines that are colocated sleep while the learner trains"),
    ("stages.rl.max_staleness=1", "stages[1].max_staleness: is 1, but engines that are colocated"),
    ("rollout.engine=simulated", "rollout.placement: colocated has no meaning for the simulated"),
    ("rollout.workers=2",
     "rollout.workers: 2 workers need 2 learner ranks to stand beside, learner.workers is 1"),
    ("learner.workers=3", "rollout.workers: 1 workers need 1 learner ranks"),
    ("rollout.engine=vllm rollout.devices=2 rollout.vllm.tensor_parallel=2 rollout.workers=2",
     "rollout.workers: 2 workers of 2 devices need 4 learner ranks"),
    ("rollout.engine=vllm rollout.vllm.data_parallel=2", "rollout.vllm.data_parallel: is 2, but"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refuses_and_says_what_to_do(tmp_path: Path, overrides: str, message: str) -> None:
    words = overrides.split(" ")
    problems = cross_check(load(tmp_path, "rollout.placement=colocated", *words))
    [found] = [problem for problem in problems if problem.startswith(message)]
    assert "or set rollout.placement: disaggregated" in found
    apart = cross_check(load(tmp_path, *words))
    assert not any(problem.startswith(message) for problem in apart)


ALONE = [
    ("stages: [{name: a, algorithm: sft, steps: 3, evaluate: null}]",
     "no stage samples or evaluates: remove it"),
    ("stages: [{name: a, kind: evaluate}]", "no stage trains: remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "message"), ALONE, ids=[m for _, m in ALONE])
def test_a_device_that_nobody_shares_is_refused(tmp_path: Path, stages: str, message: str) -> None:
    text = (
        "run: {name: tiny}\n"
        "model: {build: {layers: 1, width: 8, heads: 2, mlp_width: 16}, tokenizer: byte}\n"
        "env: {name: arithmetic, digits: 1}\n"
        "reward: {formula: correct, components: {correct: exact}}\n"
        "evaluate: {every_steps: 5, prompts: 10}\n"
        "rollout: {placement: colocated}\n" + stages
    )
    [problem] = colocation_problems(load(tmp_path, text=text))
    assert problem.startswith("rollout.placement: colocated shares a device in turns, and")
    assert problem.endswith(message)


FITS = [
    "rollout.max_new_tokens=4",
    "rollout.workers=2 learner.workers=2",
    "rollout.max_staleness=3 stages.rl.max_staleness=0",
    "rollout.oversample=1.5 rollout.when_too_old=drop_and_replace",
    "run.deterministic=true",
]


@pytest.mark.parametrize("overrides", FITS)
def test_what_goes_together_passes(tmp_path: Path, overrides: str) -> None:
    run_file = load(tmp_path, "rollout.placement=colocated", *overrides.split(" "))
    assert cross_check(run_file) == []
