"""Warnings on histories by hand: what fires, what does not, and how often it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from manta.orchestrator.alarms import Alarm
from manta.orchestrator.learning_alarms import (
    LEARNING_ALARMS,
    History,
    LearningAlarms,
    drifting_ratios,
    entropy_collapse,
    hardly_filled,
    idle_groups,
    length_blow_up,
    reward_without_accuracy,
)

Line = dict[str, float]
Shape = Callable[[float], float]
"""From how far the stage is (0 to 1) to a value."""


def run(steps: int = 120, every: int = 20, seed: int = 0, **shapes: Shape) -> list[Line]:
    """The lines of a stage that learns, with noise; `shapes` by the last part of the name take the
    places of what is healthy. There is an evaluation before the first step."""
    noise = np.random.default_rng(seed)
    healthy: dict[str, Shape] = {
        "reward/mean": lambda at: 0.3 + 0.4 * at,
        "reward/std": lambda at: 0.45,
        "learner/entropy": lambda at: 0.5 - 0.3 * at,
        "learner/ess": lambda at: 0.97,
        "learner/clip_fraction_low": lambda at: 0.02,
        "learner/clip_fraction_high": lambda at: 0.03,
        "length/mean": lambda at: 200 + 150 * at,
        "length/truncated_share": lambda at: 0.1 - 0.05 * at,
        "groups/zero_variance_share": lambda at: 0.3 + 0.25 * at,
        "groups/all_right_share": lambda at: 0.1 + 0.4 * at,
        "groups/all_wrong_share": lambda at: 0.2 - 0.15 * at,
        "pass_at/1": lambda at: 0.3 + 0.4 * at,
        "eval/accuracy": lambda at: 0.28 + 0.4 * at,
    }
    changed = {name: shapes.get(name.rpartition("/")[2], each) for name, each in healthy.items()}
    accuracy = changed.pop("eval/accuracy")

    def examined(at: float) -> Line:
        return {"eval/accuracy": min(1.0, accuracy(at) + 0.02 * noise.normal())}

    lines = [examined(0.0)]
    for step in range(1, steps + 1):
        at = step / steps
        lines.append({n: each(at) * (1 + 0.08 * noise.normal()) for n, each in changed.items()})
        if step % every == 0:
            lines.append(examined(at))
    return lines


def told(lines: Sequence[Line]) -> list[Alarm]:
    alarms = LearningAlarms()
    return [alarm for line in lines for alarm in alarms.line(line)]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_learns_raises_none(seed: int) -> None:
    assert told(run(seed=seed)) == []
    long = run(400, every=40, seed=seed, mean=lambda at: 0.4 + 0.3 * at)
    assert told(long) == []


def test_a_real_run_raises_none() -> None:
    """The lines of `recipes/demo.yaml`, seed 0, stage rl: 27.9% to 80.3% right in 220 steps."""
    text = (Path(__file__).parent / "demo_history.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 232
    assert told(lines) == []


def test_entropy_that_is_gone_before_the_task_is_solved() -> None:
    gone = run(entropy=lambda at: 0.5 * 0.1 ** (4 * at), **{"1": lambda at: 0.4})
    (alarm,) = told(gone)
    assert alarm.kind == "entropy collapse" and "fell from 0.3" in alarm.what
    assert "clip_high" in alarm.advice
    solved = run(entropy=lambda at: 0.5 * 0.1 ** (4 * at), **{"1": lambda at: 1.0})
    assert told(solved) == []
    certain = run(entropy=lambda at: 0.01 * 0.1 ** (4 * at), **{"1": lambda at: 0.4})
    assert told(certain) == []
    assert entropy_collapse(History(gone[:25])) is None, "the first steps are no measure"


def test_answers_that_grow_for_nothing() -> None:
    def lengths(reward: Shape) -> list[Line]:
        lines = run(accuracy=lambda at: 0.3)
        for step, line in enumerate(line for line in lines if "length/mean" in line):
            at = step / 120
            line["length/mean"] = 200 * 8**at
            line["reward/mean"] = reward(at) + 0.01 * (step % 3)
        return lines

    (alarm,) = told(lengths(lambda at: 0.4))
    assert alarm.kind == "length blow-up" and "at no gain in reward" in alarm.what
    assert told(lengths(lambda at: 0.4 + 0.15 * at)) == [], "longer, and worth more"


def test_answers_that_do_not_come_to_their_end() -> None:
    (alarm,) = told(run(truncated_share=lambda at: 0.05 + 0.4 * at))
    assert alarm.kind == "length blow-up" and "of them are cut off" in alarm.what
    assert told(run(truncated_share=lambda at: 0.6 - 0.2 * at)) == [], "fewer than at the start"
    assert length_blow_up(History([])) is None


@pytest.mark.parametrize("seed", range(5))
def test_reward_that_no_held_out_task_sees(seed: int) -> None:
    hacked = run(200, accuracy=lambda at: 0.4 - 0.1 * at, seed=seed, **{"1": lambda at: 0.4})
    for line in hacked:
        if "reward/mean" in line:
            line["reward/mean"] *= 1.8
    (alarm,) = told(hacked)
    assert alarm.kind == "reward without accuracy"
    assert "over 6 evaluations, held-out accuracy went from" in alarm.what


def test_reward_that_stands_still_or_is_at_its_top_is_no_such() -> None:
    still = run(200, mean=lambda at: 0.5, accuracy=lambda at: 0.4)
    assert [alarm.kind for alarm in told(still)] == []
    assert told(run(200, accuracy=lambda at: 0.995)) == []
    assert reward_without_accuracy(History(run(60))) is None, "too few evaluations"


def test_ratios_that_drift() -> None:
    (alarm,) = told(run(ess=lambda at: 1 - 0.7 * at))
    assert alarm.kind == "ratio drift" and "effective sample size is" in alarm.what
    (alarm,) = told(run(clip_fraction_low=lambda at: 0.6 * at))
    assert "of the tokens are clipped" in alarm.what
    swings = run()
    for line in swings[::3]:
        line["learner/ess"] = 0.1
    assert told(swings) == [], "a step now and then"
    simulated = LearningAlarms(trusts_logprobs=False)
    lines = run(ess=lambda at: 0.1)
    assert [alarm for line in lines for alarm in simulated.line(line)] == []
    assert drifting_ratios(History(lines)) is not None


@pytest.mark.parametrize(
    ("right", "wrong", "cause", "advice"),
    [
        (0.9, 0.0, "of the groups are all right", "harder tasks"),
        (0.0, 0.9, "of the groups are all wrong", "easier tasks"),
        (0.4, 0.4, "rewarded alike", "harder or easier"),
    ],
)
def test_groups_that_teach_nothing(right: float, wrong: float, cause: str, advice: str) -> None:
    lines = run(
        zero_variance_share=lambda at: 0.4 + 0.55 * at,
        all_right_share=lambda at: right,
        all_wrong_share=lambda at: wrong,
    )
    (alarm,) = told(lines)
    assert alarm.kind == "idle groups"
    assert cause in alarm.cause and advice in alarm.advice
    assert idle_groups(History(lines[:15])) is None
    distils = LearningAlarms()
    distils.enter(can_idle=False)
    assert [alarm for line in lines for alarm in distils.line(line)] == []


def test_each_is_told_once_a_stage_also_over_a_resume() -> None:
    alarms, lines = LearningAlarms(), run(ess=lambda at: 0.3)
    assert len([alarm for line in lines for alarm in alarms.line(line)]) == 1
    alarms.enter()
    assert len([alarm for line in lines for alarm in alarms.line(line)]) == 1, "another stage"
    resumed = LearningAlarms()
    resumed.enter(lines, {"ratio drift"})
    assert resumed.line(lines[-1]) == []
    forgotten = LearningAlarms()
    forgotten.enter(lines)
    assert [alarm.kind for alarm in forgotten.line(lines[-1])] == ["ratio drift"]


def test_what_a_stage_does_not_measure_raises_nothing() -> None:
    imitation = [{"learner/loss": 1.0, "reward/mean": float("nan")}] * 100
    assert told(imitation) == []
    for alarm in LEARNING_ALARMS:
        assert alarm.__doc__ and alarm(History(imitation)) is None


def test_a_step_that_hardly_fills_says_what_left_groups_out() -> None:
    reasons = ["accuracy_band: outside"] * 7 + ["zero_variance: equal"] * 3
    alarm = hardly_filled(4, 1, 8, reasons)
    assert alarm.what == "10 groups were filtered for step 4, which has 1 of 8"
    assert alarm.cause == "accuracy_band left 7 out, zero_variance left 3 out"
