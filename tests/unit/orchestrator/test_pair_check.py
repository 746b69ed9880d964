"""What a run file that compares rows is refused for, and what its plan says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.orchestrator import batch_plan, pair_check, survey
from manta.orchestrator.config import RunFile
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.pair_check import pair_problems
from tests.unit.orchestrator.tiny_run import TINY, load

PREFERENCES = TINY.replace(
    "env: {name: arithmetic, digits: 1, eval_size: 20}",
    "env: {name: preferences, train: DATA, eval_size: 2}",
)
ROWS = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "1234567890"} for i in range(8)]


def of_pairs(folder: Path, *overrides: str, rows: list[dict[str, str]] = ROWS) -> RunFile:
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(folder, *overrides, text=PREFERENCES.replace("DATA", str(data)))


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "kto", "weighted_sft", "reward_model"])
def test_pairs_from_data_pass(tmp_path: Path, name: str) -> None:
    assert cross_check(of_pairs(tmp_path, f"stages.rl.algorithm={name}")) == []


def test_pairs_from_samples_and_from_written_groups_pass(tmp_path: Path) -> None:
    sampled = "stages.rl.algorithm={name: dpo, samples_from: policy, samples_per_prompt: 4}"
    assert cross_check(load(tmp_path, sampled)) == []
    written = (
        "stages.warm={name: warm, kind: generate, steps: 3, evaluate: null, "
        "algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}}}",
        "stages.rl.trajectories=stage:warm",
    )
    for name in ("dpo", "kto", "simpo", "weighted_sft", "reward_model"):
        assert cross_check(load(tmp_path, f"stages.rl.algorithm={name}", *written)) == []


@pytest.mark.parametrize("name", ["online_dpo", "raft", "rejection_sampling", "spo"])
def test_fresh_samples_pass(tmp_path: Path, name: str) -> None:
    assert cross_check(load(tmp_path, f"stages.rl.algorithm={name}")) == []


def test_distillation_needs_no_reward(tmp_path: Path) -> None:
    overrides = ("stages.rl.algorithm=distillation", "stages.rl.reward=null")
    loaded = load(tmp_path, *overrides, "stages.rl.evaluate=null", "reference.model=stage:warm")
    assert cross_check(loaded) == []
    [told] = cross_check(load(tmp_path, *overrides, "stages.rl.evaluate=null"))
    assert told.startswith("stages[1].reference: algorithm 'distillation' learns from a teacher")


def test_as_many_samples_as_there_are_answers(tmp_path: Path) -> None:
    loaded = of_pairs(tmp_path, "stages.rl.algorithm={name: dpo, samples_per_prompt: 4}")
    assert list(pair_problems(loaded)) == [
        "stages[1].algorithm.samples_per_prompt: is 4, but 'preferences' has 2 written answers a "
        "task: set it to 2"
    ]


def test_dpo_on_given_answers_is_at_temperature_1_on_both_sides(tmp_path: Path) -> None:
    overrides = ("stages.rl.algorithm=dpo", "rollout.temperature=0.7")
    [told] = pair_problems(of_pairs(tmp_path, *overrides))
    assert told.startswith(
        "stages[1].algorithm: 'dpo' compares log-probs of given answers at temperature 1 with the "
        "reference's, which are at rollout.temperature (0.7): set that to 1"
    )
    reward = of_pairs(tmp_path, "stages.rl.algorithm=reward_model", "rollout.temperature=0.7")
    assert list(pair_problems(reward)) == []


def test_a_reward_model_needs_a_backend_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = of_pairs(tmp_path, "stages.rl.algorithm=reward_model")
    monkeypatch.setattr(pair_check, "HOLDING_RESIDENTS", ("another",))
    assert list(pair_problems(loaded)) == [
        "stages[1].algorithm.reward_model: learner.backend plain cannot train a reward model "
        "beside the policy: choose another"
    ]
    # DPO trains the policy alone.
    assert list(pair_problems(of_pairs(tmp_path, "stages.rl.algorithm=dpo"))) == []


def test_a_reward_model_cannot_start_from_under_an_adapter(tmp_path: Path) -> None:
    overrides = ("stages.rl.algorithm=reward_model", "model.lora={rank: 2}")
    [told] = pair_problems(of_pairs(tmp_path, *overrides))
    assert told.startswith("stages[1].algorithm.reward_model.path: with model.lora")
    path = "stages.rl.algorithm={name: reward_model, reward_model: {path: ./nowhere}}"
    assert list(pair_problems(of_pairs(tmp_path, path))) == [
        "stages[1].algorithm.reward_model.path: there is no folder './nowhere'"
    ]


def test_odd_data_is_named_and_the_longer_answer_must_fit(tmp_path: Path) -> None:
    rows = [*ROWS[:3], {"prompt": "1+1=", "chosen": "2", "rejected": "2"}, *ROWS]
    told = cross_check(of_pairs(tmp_path, "stages.rl.algorithm=dpo", rows=rows))
    assert any("row 3 of" in line and "chosen and rejected are the same" in line for line in told)
    long = [{**ROWS[0], "rejected": "1" * 30}, *ROWS]
    told = cross_check(of_pairs(tmp_path, "stages.rl.algorithm=dpo", rows=long))
    assert len(told) == 1
    assert told[0].startswith("stages[1].env: 1 of 9 tasks measured do not fit model.context (24)")


def plan(loaded: RunFile, stage: int = 1) -> list[str]:
    return batch_plan.describe(loaded, loaded.stages[stage], survey.look(loaded))


def test_the_plan_says_pairs(tmp_path: Path) -> None:
    lines = plan(of_pairs(tmp_path, "stages.rl.algorithm=dpo"))
    assert lines[0].startswith("8 prompts x 2 given answers = 16 rows a step, at most about ")
    assert lines[4] == (
        "pairs: each prompt's best sample with its worst, at most 8 pairs a step; every pair "
        "counts the same; prompts without one are filtered; the loss is DPO with beta 0.1 against "
        "the weights at the start of the stage"
    )
    lines = plan(of_pairs(tmp_path, "stages.rl.algorithm=madpo"))
    assert (
        "every pair counts the same, times a weight of the pair by its margin (1 at 6.91); "
        in (lines[4])
    )
    lines = plan(of_pairs(tmp_path, "stages.rl.algorithm={name: simpo, pair_margin: 0.5}"))
    assert lines[4].startswith("pairs: each prompt's best sample with its worst, by 0.5 at least, ")
    assert lines[4].endswith("the loss is SimPO with beta 2 and a target margin of 0.5")
    [ipo] = [line for line in plan(of_pairs(tmp_path, "stages.rl.algorithm=ipo")) if "IPO" in line]
    assert ipo.endswith(
        "the loss is IPO with beta 0.1, log-probs averaged over tokens against the weights at the "
        "start of the stage"
    )
    sampled = (
        "stages.rl.algorithm={name: reward_model, samples_from: policy, samples_per_prompt: 4}"
    )
    lines = plan(load(tmp_path, sampled, "learner.learning_rate=0.25"))
    assert lines[0].startswith("8 prompts x 4 samples = 32 completions a step")
    assert lines[4:6] == [
        "pairs: every two samples of a prompt whose rewards differ, at most 48 pairs a step; every "
        "prompt counts the same; prompts without one are filtered; the loss is Bradley-Terry on "
        "the scores of a reward model",
        "reward model: a model of its own that starts from the policy, learning rate 0.25; it "
        "alone trains, the policy stays as it is",
    ]


@pytest.mark.parametrize("name", ["online_dpo", "kto"])
def test_the_plan_says_that_nothing_bounds_a_second_update(tmp_path: Path, name: str) -> None:
    fresh = f"stages.rl.algorithm={{name: {name}, samples_from: policy, samples_per_prompt: 4}}"
    note = "; note: no ratio bounds how far the 2 updates of a step take the policy from its"
    twice = "stages.rl.updates_per_step=2"
    assert note in plan(load(tmp_path, fresh, twice))[4]
    assert "note" not in plan(load(tmp_path, fresh))[4]
    assert "note" not in plan(of_pairs(tmp_path, "stages.rl.algorithm=dpo", twice))[4]


def test_the_plan_says_labels_what_is_imitated_and_the_teacher(tmp_path: Path) -> None:
    assert plan(of_pairs(tmp_path, "stages.rl.algorithm=kto"))[4] == (
        "labels: a sample is desirable if its reward is above 0.5; every one counts, desirable "
        "ones 1 times, others 1; the loss is KTO with beta 0.1 against the weights at the start of "
        "the stage, its reference point the mean log-ratio of the other class"
    )
    assert plan(load(tmp_path, "stages.rl.algorithm=pacs"))[4] == (
        "labels: a sample is right if its reward is above 0.5, both classes of a prompt count the "
        "same; every prompt counts the same; the loss is PACS over all samples of a prompt, with "
        "beta 1 against the learner's own log-probs at the start of the step"
    )
    raft = "stages.rl.algorithm={name: raft, keep_best: 2, keep_above: 0, reward_temperature: 0.5}"
    assert plan(load(tmp_path, raft))[4] == (
        "no importance ratio: cross-entropy needs no log-probs of a behaviour policy; of each "
        "prompt's samples the best 2 are imitated; samples whose reward is 0 or less are left out; "
        "a row weighs exp(reward / 0.5)"
    )
    taught = ("stages.rl.algorithm=distillation", "reference.model=stage:warm")
    assert plan(load(tmp_path, *taught))[4] == (
        "the ratio's denominator is the engine's own log-probs, nothing is recomputed; KL to "
        "stage:warm, 1 x k1 in the reward, discounted by 0 a token; no rewards train, the KL alone "
        "does"
    )
