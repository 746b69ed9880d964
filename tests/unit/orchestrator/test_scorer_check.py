"""Scorers, the rewards that call them, and what each costs, as a run file says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manta.orchestrator import survey
from manta.orchestrator.batch_plan import describe
from manta.orchestrator.config import RunFile
from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.lanes import eval_lane, train_lane
from manta.orchestrator.products import Products
from manta.orchestrator.role_needs import placement_needs
from manta.orchestrator.run_file import fingerprint
from manta.orchestrator.scorer_memory import scorer_parts
from manta.orchestrator.scorers import called_in, model_folder
from tests.unit.orchestrator.tiny_run import TINY, load

LEARNED = (
    "{formula: preference, gold: correct, components: "
    "{preference: {reward: reward_model, scorer: judge}, correct: exact}}"
)


def run_file(folder: Path, *overrides: str) -> RunFile:
    """Its rl stage learns from a scorer whose model is in the folder `rm`."""
    model = folder / "rm"
    if not model.exists():
        config(model)
    start = [f"scorers={{judge: {{model: {model}, workers: 2}}}}", f"stages.rl.reward={LEARNED}"]
    return load(folder, *start, *overrides, text=TINY)


def config(model: Path, **other: object) -> None:
    sizes = {
        "model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"],
        "id2label": {"0": "LABEL_0"}, "vocab_size": 14, "max_position_embeddings": 24,
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps({**sizes, **other}))


def test_a_run_that_learns_from_a_scorer(tmp_path: Path) -> None:
    good = run_file(tmp_path)
    assert cross_check(good) == []
    assert called_in(good) == ("judge",)
    told = describe(good, good.stages[1], survey.look(good))
    assert f"scorer judge: {tmp_path / 'rm'}" in told
    assert "what trains is held against 'correct', the gold reward" in told
    assert not any("scorer" in line for line in describe(good, good.stages[0], survey.look(good)))
    assert ("scorer judge", 2, 0.1) in placement_needs(good)
    assert model_folder(good.scorers["judge"], Products(tmp_path)) == str(tmp_path / "rm")
    lane = train_lane(good, good.stages[1], Products(tmp_path))
    assert lane.reward is not None and lane.reward.scorers == ("judge",)
    evaluate = good.stages[0].evaluate
    assert evaluate is not None
    reward = eval_lane(good, good.stages[1], evaluate).reward
    assert reward is not None and reward.gold == "correct"
    more = run_file(tmp_path, "scorers.judge.workers=3", "scorers.judge.threads=1")
    assert fingerprint(more) == fingerprint(good)
    assert fingerprint(run_file(tmp_path, "scorers.judge.dtype=bfloat16")) != fingerprint(good)


def test_its_memory_is_that_of_a_model_with_one_output(tmp_path: Path) -> None:
    parts = {part.what: part for part in scorer_parts(run_file(tmp_path), 14)}
    assert {part.role for part in parts.values()} == {"scorer judge"}
    # Embeddings 14 x 8, attention 4 x 8 x 8 and biases 24, MLP 3 x 8 x 16, 3 norms, head 8
    assert parts["weights"].bytes == 4 * (112 + 256 + 24 + 384 + 24 + 8)
    halved = run_file(tmp_path, "scorers.judge.dtype=bfloat16")
    assert {part.what: part.bytes for part in scorer_parts(halved, 14)}["weights"] == 2 * 808


def test_scorers_of_log_probs(tmp_path: Path) -> None:
    """RTO: rewards of what two causal models say, of which one is what a stage leaves."""
    config(tmp_path / "dpo", architectures=["Qwen2ForCausalLM"])
    ratio = "{reward: token_log_ratio, scorer: dpo, against: before}"
    good = load(
        tmp_path,
        f"scorers={{dpo: {{model: {tmp_path / 'dpo'}, kind: logprobs}}, "
        "before: {model: stage:warm, kind: logprobs}}",
        "stages.rl.algorithm=rto",
        f"stages.rl.reward={{formula: correct, within: {{rto: 1.0}}, components: {{rto: {ratio}, "
        "correct: exact}}",
        text=TINY,
    )
    assert cross_check(good) == []
    told = describe(good, good.stages[1], survey.look(good))
    assert "within a sample is paid, beside its reward: 1 * rto" in told
    lane = train_lane(good, good.stages[1], Products(tmp_path))
    assert lane.reward is not None
    assert (lane.reward.scorers, lane.reward.within) == (("before", "dpo"), {"rto": 1.0})
    parts = [part for part in scorer_parts(good, 14) if part.role == "scorer dpo"]
    whole = {part.what: part.bytes for part in parts}
    # As a reward model's, with a head of every word (its config does not tie it), no head of one
    assert whole["weights"] == 4 * (112 + 112 + 256 + 24 + 384 + 24)
    assert "logits of a chunk" in whole


REFUSED = [
    ("scorers.judge.workers=0", "scorers.judge.workers: is 0, must be at least 1"),
    ("scorers.judge.devices=2", "scorers.judge.devices: is 2: a worker computes on one GPU at "
     "most, set 1 or 0"),
    ("scorers.judge.deadline_seconds=0", "scorers.judge.deadline_seconds: is 0, must be above 0"),
    ("scorers.judge.deadline_seconds=60", "scorers.judge.deadline_seconds: is 60, but a component "
     "has 30 s for its answer: raise reward_workers.deadline_seconds"),
    ("scorers.judge.model=./absent", "scorers.judge.model: there is no folder './absent'"),
    ("scorers.judge.model=warm", "scorers.judge.model: 'warm' is no folder; the product of a stage "
     "is named stage:NAME; did you mean 'warm'?"),
    ("scorers.judge.model=stage:worm", "stages[1].reward.components.preference: scorer 'judge': "
     "there is no stage 'worm' before this one; did you mean 'warm'?"),
    ("scorers.judge.model=stage:rl", "stages[1].reward.components.preference: scorer 'judge': "
     "'stage:rl' is this very stage: name one that stands before it"),
    ("scorers.judge.kind=logprobs", "scorers.judge.model: 'TMP/rm' holds a "
     "Qwen2ForSequenceClassification, a scorer of kind logprobs is a ...ForCausalLM"),
    ("scorers.judge={model: stage:warm, kind: logprobs}", "stages[1].reward.components.preference: "
     "scorer 'judge' is of kind logprobs, and this reward needs what those of kind reward_model "
     "say: set scorers.judge.kind"),
    ("stages.rl.reward.components.preference={reward: token_log_ratio, scorer: judge, against: x}",
     "stages[1].reward.components.preference: scorer 'judge' is of kind reward_model, and this "
     "reward needs what those of kind logprobs say: set scorers.judge.kind"),
    ("scorers.judge.model=stage:warm", "stages[1].reward.components.preference: scorer 'judge': "
     "stage 'warm' leaves weights, no reward model: name a train stage of algorithm reward_model"),
    ("stages.rl.reward.components.preference.scorer=jugde", "stages[1].reward.components."
     "preference.scorer: there is no scorer 'jugde'; did you mean 'judge'?"),
    ("stages.rl.reward={formula: correct, components: {correct: exact}}", "scorers.judge: no "
     "reward calls it: name it in a component, such as {reward: reward_model, scorer: judge}, or "
     "remove it"),
    ("scorers={}", "stages[1].reward.components.preference.scorer: there is no scorer 'judge'; add "
     "it under scorers"),
    ("stages.rl.reward.gold=corect", "stages[1].reward.gold: there is no component 'corect'; did "
     "you mean 'correct'?"),
    ("stages.rl.reward.formula='preference + correct'", "stages[1].reward.gold: 'correct' stands "
     "in the formula: what trains cannot be held against itself; name a component outside of it"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "problem"), REFUSED, ids=[each[0] for each in REFUSED])
def test_what_does_not_fit_is_told(change: str, problem: str, tmp_path: Path) -> None:
    assert problem.replace("TMP", str(tmp_path)) in cross_check(run_file(tmp_path, change))


FOLDERS = [
    ({"architectures": ["Qwen2ForCausalLM"]}, "holds a Qwen2ForCausalLM, a reward model is a "
     "...ForSequenceClassification with one output"),
    ({"id2label": {"0": "bad", "1": "good"}}, "has 2 outputs, a reward model has one"),
    ({"max_position_embeddings": 16}, "was made for at most 16 tokens, model.context is 24"),
    ({"vocab_size": 10}, "knows 10 tokens and has no tokenizer.json, the policy's tokenizer has"),
]  # fmt: skip


@pytest.mark.parametrize(("other", "problem"), FOLDERS)
def test_folders_of_other_models_are_told(
    other: dict[str, object], problem: str, tmp_path: Path
) -> None:
    config(tmp_path / "rm", **other)
    [found] = cross_check(run_file(tmp_path))
    assert found.startswith("scorers.judge.model: ") and problem in found
