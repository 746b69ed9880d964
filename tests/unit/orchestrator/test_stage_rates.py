"""The learning rates of a stage with a model beside the policy, and when that is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.actors.backends.schedule import NO_RESIDENTS
from manta.orchestrator.stage_rates import StageRates
from tests.unit.orchestrator.tiny_run import load


def test_without_a_critic_nothing_else_trains(tmp_path: Path) -> None:
    run_file = load(tmp_path, "stages.rl.decay=linear")
    stage = run_file.stages[1]
    rates = StageRates(run_file, stage)
    schedule = run_file.schedule(stage)
    for step in range(5):
        assert rates.policy(step) == schedule.at(step, 5)
        assert rates.residents(step) is NO_RESIDENTS


def test_the_policy_s_schedule_begins_after_the_critic_s_warm_up(tmp_path: Path) -> None:
    run_file = load(
        tmp_path,
        "stages.rl.algorithm={name: ppo, critic: {warmup_steps: 2, learning_rate: 0.3}}",
        "stages.rl.decay=linear",
        "stages.rl.learning_rate=0.1",
        "stages.rl.warmup_steps=1",
        "stages.rl.steps=6",
    )
    rates = StageRates(run_file, run_file.stages[1])
    assert [rates.residents(step).is_policy_frozen for step in range(6)] == [True] * 2 + [False] * 4
    assert [rates.policy(step) for step in range(2, 6)] == pytest.approx(
        [0.1, 0.1, 0.1 * 2 / 3, 0.1 / 3]
    )
    critic = [rates.residents(step).by_name["critic"] for step in range(6)]
    assert critic == pytest.approx([0.3, 0.3, 0.24, 0.18, 0.12, 0.06])


def test_a_critic_without_a_rate_takes_the_policy_s(tmp_path: Path) -> None:
    run_file = load(tmp_path, "stages.rl.algorithm=ppo", "stages.rl.learning_rate=0.1")
    rates = StageRates(run_file, run_file.stages[1])
    assert rates.residents(3).by_name == {"critic": rates.policy(3)} == {"critic": 0.1}


def test_while_a_reward_model_trains_the_policy_never_does(tmp_path: Path) -> None:
    run_file = load(
        tmp_path,
        "stages.rl.algorithm={name: reward_model, reward_model: {learning_rate: 0.3}}",
        "stages.rl.decay=linear",
        "stages.rl.steps=3",
    )
    rates = StageRates(run_file, run_file.stages[1])
    told = [rates.residents(step) for step in range(3)]
    assert all(each.is_policy_frozen for each in told)
    assert [each.by_name["reward"] for each in told] == pytest.approx([0.3, 0.2, 0.1])


def test_an_implicit_reward_model_trains_beside_the_policy_at_a_rate_of_its_own(
    tmp_path: Path,
) -> None:
    run_file = load(tmp_path, "stages.rl.algorithm=prime", "stages.rl.decay=linear")
    rates = StageRates(run_file, run_file.stages[1])
    told = [rates.residents(step) for step in range(5)]
    assert not any(each.is_policy_frozen for each in told)
    assert [each.by_name["process"] for each in told] == pytest.approx(
        [1e-6 * share for share in (1, 0.8, 0.6, 0.4, 0.2)]
    )
    same = load(
        tmp_path, "stages.rl.algorithm={name: prime, implicit_reward: {learning_rate: null}}"
    )
    rates = StageRates(same, same.stages[1])
    assert rates.residents(3).by_name == {"process": rates.policy(3)}
