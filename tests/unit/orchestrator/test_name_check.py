"""What stages may say of one another, and of weights by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.name_check import steps_before
from tests.unit.orchestrator.tiny_run import TINY, load

HEAD, _, TAIL = TINY.partition("stages:\n")
CHAIN = (
    HEAD
    + """\
stages:
  - {name: warm, algorithm: sft, steps: 3, prompts_per_step: 4}
  - {name: sample, kind: generate, algorithm: {name: grpo, samples_per_prompt: 2}, steps: 2,
     model: "soup(stage:warm, initial)", evaluate: null}
  - {name: scored, kind: annotate, trajectories: stage:sample, reference_logprobs: true}
  - {name: learn, algorithm: {name: grpo, samples_per_prompt: 2, kl: {coef: 0.1}}, steps: 2,
     trajectories: stage:scored}
  - name: rl
    algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0.1}}
    steps: 5
    prompts_per_step: 8
    start_from: step:3
    reference: {model: stage:warm, refresh: {every_steps: 2, how: ema, decay: 0.9}}
  - {name: both, kind: merge, models: [stage:rl, stage:warm], weights: [3, 1]}
  - {name: exam, kind: evaluate, model: stage:both}
"""
    + TAIL[TAIL.index("rollout:") :]
)


def test_a_chain_that_fits_has_no_problems(tmp_path: Path) -> None:
    loaded = load(tmp_path, text=CHAIN)
    assert cross_check(loaded) == []
    assert steps_before(loaded, loaded.stages[2]) == 5
    assert steps_before(loaded, loaded.stages[4]) is None, "what an annotation takes, data decides"


REFUSED = [
    ("stages.sample.algorithm=reinforce",
     "stages[3].trajectories: stage 'sample' makes one sample of a prompt, and algorithm 'grpo' "
     "compares a prompt's samples"),
    ("stages.learn.algorithm={name: raft, samples_per_prompt: 8, keep_best: 2}",
     "stages[3].trajectories: stage 'sample' makes 2 samples of a prompt, and not 8 as said here; "
     "with 2: algorithm 'raft': keep_best is 2 of 2 samples"),
    ("stages.rl.start_from=stage:wram", "stages[4].start_from: there is no stage 'wram' before "
     "this one; did you mean 'warm'?"),
    ("stages.rl.start_from=stage:both", "stages[4].start_from: stage 'both' comes later"),
    ("stages.rl.start_from=stage:rl", "stages[4].start_from: 'stage:rl' is this very stage"),
    ("stages.rl.start_from=stage:scored", "stages[4].start_from: 'stage:scored': stage 'scored' is "
     "of kind annotate and leaves data, no weights"),
    ("stages.rl.start_from=ema(0.9)", "stages[4].start_from: 'ema(0.9)': a moving average follows"),
    ("stages.rl.start_from=./absent", "stages[4].start_from: './absent': there is no such folder"),
    ("stages.rl.start_from=soup(initial, initial)", "stages[4].start_from: 'soup(initial, initial)'"
     ": averages one and the same"),
    ("stages.sample.model=step:4", "stages[1].model: 'step:4': the run has made 3 steps when this "
     "stage starts"),
    ("stages.learn.model=stage:warm", "stages[3].model: is for stages of kind generate and "
     "evaluate, this one is train"),
    ("stages.sample.start_from=stage:warm", "stages[1].start_from: is for stages of kind train"),
    ("stages.scored.trajectories=stage:warm", "stages[2].trajectories: stage 'warm' is of kind "
     "train and leaves weights"),
    ("stages.scored.trajectories=null", "stages[2].trajectories: an annotate stage needs some"),
    ("stages.scored.steps=3", "stages[2].steps: is 3, stages of kind annotate have none"),
    ("stages.learn.reference={refresh: {}}", "stages[3].reference.refresh: a reference follows "
     "where the policy is published after every step, and this stage samples nothing"),
    ("stages.learn.trajectories=stage:rl", "stages[3].trajectories: stage 'rl' comes later"),
    ("stages.rl.algorithm.kl.coef=0", "stages[4].reference: nothing in this stage asks for a "
     "reference (algorithm.kl.coef is 0)"),
    ("stages.rl.reference.model=ema(0.9)", "stages[4].reference.refresh: a moving average follows "
     "at every step anyway: remove it"),
    ("stages.rl.reference.refresh.every_steps=0", "stages[4].reference.refresh.every_steps: is 0"),
    ("stages.rl.reference.refresh.decay=1", "stages[4].reference.refresh.decay: is 1, must lie"),
    ("stages.scored.reference={refresh: {}}", "stages[2].reference.refresh: nothing trains in this "
     "stage"),
    ("stages.scored.reference={model: ema(0.9)}", "stages[2].reference.model: 'ema(0.9)': follows "
     "a policy that trains"),
    ("stages.scored={name: scored, kind: annotate, trajectories: stage:sample, reward: null}",
     "stages[2].reward: an annotate stage scores with its reward, or with reference_logprobs"),
    ("stages.both.evaluate={prompts: 4}", "stages[5].evaluate: has no effect in a stage of kind "
     "merge"),
    ("stages.both.models=[]", "stages[5].models: a merge stage needs some"),
    ("stages.both.weights=[1]", "stages[5].weights: there are 1 for 2 models"),
    ("stages.both.weights=[1, -1]", "stages[5].weights: their sum is 0, must be above 0"),
    ("stages.both.models=[stage:rl, 'soup(initial, stage:warm)']", "stages[5].models: 'soup(initial"
     ", stage:warm)' is a soup: write out"),
    ("model.lora={}", "stages[4].start_from: 'step:3': with model.lora the policy is an adapter"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refuses(tmp_path: Path, override: str, message: str) -> None:
    problems = cross_check(load(tmp_path, override, text=CHAIN))
    assert any(problem.startswith(message) for problem in problems), problems


def test_a_reference_that_nothing_is_compared_with_is_told(tmp_path: Path) -> None:
    problems = cross_check(load(tmp_path, "reference.refresh={every_steps: 2}"))
    assert [problem.split(":")[0] for problem in problems] == ["reference.refresh"]


def test_what_is_said_at_the_top_is_told_from_there(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "stages.rl.algorithm.kl.coef=0.1",
        "reference={model: stage:wram, refresh: {every_steps: 0}}",
    )
    assert [problem.split(": ")[0] for problem in cross_check(loaded)] == [
        "stages[1].reference.model (from the top)",
        "stages[1].reference.refresh.every_steps (from the top)",
    ]


def folder_of(path: Path, **changes: object) -> Path:
    path.mkdir()
    shape = {
        "model_type": "qwen2",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 14,
    }
    (path / "config.json").write_text(json.dumps(shape | changes))
    return path


def test_a_folder_must_hold_a_model_of_the_same_shape_and_tokens(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good")
    assert cross_check(load(tmp_path, f"stages.rl.start_from={good}", text=CHAIN)) == []
    wide = folder_of(tmp_path / "wide", hidden_size=16)
    [problem] = cross_check(load(tmp_path, f"stages.rl.start_from={wide}", text=CHAIN))
    assert problem == (
        f"stages[4].start_from: '{wide}': has hidden_size 16, the run's model 8: weights can only "
        "be taken from a model of the same shape"
    )
    words = folder_of(tmp_path / "words")
    (words / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    [problem] = cross_check(load(tmp_path, f"stages.rl.start_from={words}", text=CHAIN))
    assert problem == (
        f"stages[4].start_from: '{words}': its tokenizer.json is another tokenizer than the run's "
        "'char:0123456789+=': its weights belong to other tokens"
    )
