"""Every rule between settings, broken one at a time; and data that does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from manta.orchestrator import survey
from manta.orchestrator.cross_check import cross_check
from tests.unit.orchestrator.tiny_run import TINY, load


def test_a_good_run_file_has_no_problems(tmp_path: Path) -> None:
    assert cross_check(load(tmp_path)) == []


@pytest.mark.parametrize(
    "told",
    [
        "stages.rl.updates_per_step=2",
        "stages.rl.epochs_per_step=2",
        "rollout.max_staleness=1",
        "stages.rl.algorithm=clip_cov",
    ],
)
def test_tokens_are_chosen_where_that_has_an_effect(tmp_path: Path, told: str) -> None:
    assert cross_check(load(tmp_path, "stages.rl.algorithm=kl_cov", told)) == []


REFUSED = [
    ("run.variables=[HF_TOKEN, 'KEY=hush']", "run.variables[1]: give the name alone, 'KEY': its "
     "value is taken from the environment"),
    ("run.name=a/b", "run.name: 'a/b' must be letters, digits, '.', '_' and '-', starting with a "
     "letter or digit: it names the run's folder"),
    ("run.cluster=absent.yaml", "run.cluster: absent.yaml: No such file or directory: name a "
     "cluster file"),
    ("run.max_hours=0", "run.max_hours: is 0, must be above 0"),
    ("run.deadline_minutes=0", "run.deadline_minutes: is 0, must be above 0"),
    ("model.build=null",
     "model.path: exactly one of model.path and model.build is needed, found neither"),
    ("model.path=x/y", "model.path: exactly one of model.path and model.build is needed, found "
     "both"),
    ("model={path: ./absent/model}", "model.path: there is no folder './absent/model'"),
    ("model.build.layers=0", "model.build.layers: is 0, must be at least 1"),
    ("model.build.width=9", "model.build.width: 9 is not divisible by 2 heads"),
    ("model.build.width=10", "model.build.width: 10 / 2 heads gives an odd head size, rotary "
     "positions need an even one"),
    ("model.build.kv_heads=3", "model.build.kv_heads: 2 heads are not divisible by 3"),
    ("model.tokenizer=null", "model.tokenizer: a model that is built needs one: byte, "
     "char:ALPHABET, or the path of a tokenizer.json"),
    ("model.tokenizer=char:11", "model.tokenizer: tokenizer char:11: ['1'] stand in it more than "
     "once"),
    ("model.context=1", "model.context: is 1, must be at least 2"),
    ("rollout.max_new_tokens=24", "rollout.max_new_tokens: is 24, must be below model.context "
     "(24), which also holds the prompt"),
    ("rollout.max_rows=0", "rollout.max_rows: is 0, must be at least 1"),
    ("rollout.queue_rows=0", "rollout.queue_rows: is 0, must be at least 1"),
    ("rollout.progress_seconds=0", "rollout.progress_seconds: is 0, must be above 0"),
    ("rollout.workers=0", "rollout.workers: is 0, must be at least 1"),
    ("rollout.threads=-1", "rollout.threads: is -1, must be at least 0"),
    ("rollout.top_p=0.9", "rollout.top_p: is 0.9, must be 1 while training: the engine's "
     "log-probs would be those of the kept tokens, the learner computes its own over the whole "
     "vocabulary, and their ratio would be wrong"),
    ("rollout.top_k=5", "rollout.top_k: is 5, must be 0 while training"),
    ("rollout.ignore_eos=true", "stages[0].evaluate: rollout.ignore_eos makes every answer run on "
     "past its end"),
    ("rollout={engine: simulated, ignore_eos: true, max_new_tokens: 4}", "rollout.ignore_eos: has "
     "no effect on the simulated engine"),
    ("rollout.temperature=0", "rollout.temperature: is 0, must be above 0 while training: greedy "
     "samples of a prompt are all equal"),
    ("stages.rl.algorithm={name: grpo, advantage: gae}", "stages[1].algorithm: algorithm 'grpo': "
     "advantage is gae, which needs values: add a critic"),
    ("stages.rl.algorithm=gdpo", "stages[1].algorithm.component_weights: the advantage decoupled "
     "takes every component by itself: give those that train a weight, of correct"),
    ("stages.rl.algorithm={name: gdpo, component_weights: {corect: 1}}",
     "stages[1].algorithm.component_weights: there is no component 'corect'; did you mean "
     "'correct'?"),
    ("stages.rl.algorithm={name: grpo, filters: [{name: accuracy_band, component: corect}]}",
     "stages[1].algorithm.filters[0].component: there is no component 'corect'; did you mean "
     "'correct'?"),
    ("stages.rl.algorithm=prof",
     "stages[1].algorithm.filters[0].process: there is no component 'process'"),
    ("stages.rl.algorithm={name: dr_grpo, filters: [{name: max_variance, keep: 8}]}",
     "stages[1].algorithm: algorithm 'dr_grpo': the filter max_variance keeps 8 of "
     "samples_per_prompt (8): set keep to 2 or more, and below samples_per_prompt"),
    ("stages.rl.algorithm={name: gspo, dual_clip: 3}", "stages[1].algorithm: algorithm 'gspo': "
     "dual_clip is 3.0 but loss is gspo, which does not read it: remove it, or set loss to "
     "clipped_surrogate"),
    ("stages.rl.algorithm={name: ppo, advantage: reward}", "stages[1].algorithm: algorithm 'ppo': "
     "there is a critic but advantage is reward"),
    ("stages.rl.algorithm={name: ppo, critic: {warmup_steps: 5}}", "stages[1].algorithm.critic."
     "warmup_steps: is 5, but the stage has 5 steps, so that the policy would never train"),
    ("stages.rl.algorithm={name: ppo, critic: {path: ./nowhere}}", "stages[1].algorithm.critic."
     "path: there is no folder './nowhere'"),
    ("learner.learning_rate=0", "learner.learning_rate: is 0, must be above 0"),
    ("learner.betas=[0.9, 1]", "learner.betas[1]: is 1, must be at least 0 and below 1"),
    ("publish.transport=disk", "publish.path: transport disk needs one: a folder that the driver "
     "and every rollout worker reach, or a URI such as s3://bucket/folder"),
    ("publish.path=weights", "publish.path: has no effect with transport object_store: remove it"),
    ("publish.transport=nccl", "publish.transport: is nccl, which is vLLM's own, and "
     "rollout.engine is embedded: set rollout.engine: vllm, or choose object_store"),
    ("publish.transport=ipc", "publish.transport: is ipc, which is vLLM's own, and rollout.engine "
     "is embedded: set rollout.engine: vllm, or choose object_store"),
    ("publish={transport: nccl, path: weights}", "publish.path: has no effect with transport nccl"),
    ("publish={transport: disk, path: /dev/null/weights}", "publish.path: '/dev/null/weights' "
     "cannot be used from here: "),
    ("publish={transport: disk, path: 'nope://x/y'}", "publish.path: 'nope://x/y' cannot be used "
     "from here: 'nope://x/y' cannot be opened: "),
    ("publish.probe_tolerance=0", "publish.probe_tolerance: is 0, must be above 0"),
    ("publish.engine_tolerance=0", "publish.engine_tolerance: is 0, must be above 0"),
    ("health.every_seconds=0", "health.every_seconds: is 0, must be above 0"),
    ("health.start_seconds=-1", "health.start_seconds: is -1, must be above 0"),
    ("health.frozen_after_seconds=2", "health.frozen_after_seconds: is 2, must be at least 1.5 "
     "times every_seconds (2)"),
    ("mismatch_guard.warn_kl=0", "mismatch_guard.warn_kl: is 0, must be above 0"),
    ("mismatch_guard.limit_kl=1e-4", "mismatch_guard.limit_kl: is 0.0001, must be at least warn_kl "
     "(0.001): a run is warned before it is stopped"),
    ("checkpoint.every_steps=0", "checkpoint.every_steps: is 0, must be at least 1"),
    ("reward_workers.deadline_seconds=0",
     "reward_workers.deadline_seconds: is 0, must be above 0"),
    ("stages=[]", "stages: there are none, list at least one"),
    ("stages.warm.name=rl", "stages[0].name: 'rl' is the name of 2 stages"),
    ("stages.warm.name='0'", "stages[0].name: '0' must be letters, digits, '.', '_' and '-', and "
     "no number"),
    ("stages.rl.algorithm=null",
     "stages[1].algorithm: a train stage needs one, such as grpo or sft"),
    ("stages.rl.env=null", "stages[1].env: a train stage needs an environment, here or at the top"),
    ("stages.rl={reward: null, evaluate: null, name: rl, algorithm: grpo, steps: 1}",
     "stages[1].reward: algorithm 'grpo' learns from rewards, name one"),
    ("stages.warm.reward=null",
     "stages[0].reward: evaluation needs a reward whose component it counts"),
    ("stages.rl.steps=0", "stages[1].steps: is 0, a train stage needs at least 1"),
    ("stages.rl.prompts_per_step=0", "stages[1].prompts_per_step: is 0, must be at least 1"),
    ("stages.rl.updates_per_step=3", "stages[1].updates_per_step: 3 does not divide "
     "prompts_per_step (8): every update of a step takes as many prompts"),
    ("stages.rl.algorithm=remax stages.rl.updates_per_step=2", "stages[1].updates_per_step: a step "
     "makes 2 updates, and the loss policy_gradient has no ratio"),
    ("stages.rl.algorithm={name: reinforce, loss: policy_gradient} stages.rl.epochs_per_step=3",
     "stages[1].updates_per_step: a step makes 3 updates"),
    ("stages.rl.algorithm=kl_cov", "stages[1].updates_per_step: with one update a step the policy "
     "has not moved when the loss kl_cov looks"),
    ("rollout.max_staleness=2 stages.rl.algorithm={name: kl_cov, proximal: learner}",
     "stages[1].updates_per_step: with one update a step"),
    ("stages.rl.algorithm={name: clip_cov, covariance: {share: 2}}", "stages[1].algorithm: "
     "algorithm 'clip_cov': covariance.share is 2, it must be above 0 and at most 1"),
    ("stages.rl.algorithm={name: grpo, kl: {target: -1}}", "stages[1].algorithm: algorithm 'grpo': "
     "kl.target is -1, it must be above 0: nats a sample (null: no target)"),
    ("stages.rl.learning_rate=-1", "stages[1].learning_rate: is -1, must be above 0"),
    ("stages.warm.trajectories=./absent",
     "stages[0].trajectories: there is no folder './absent'"),
    ("stages.rl.trajectories=stage:warm", "stages[1].trajectories: stage 'warm' is of kind train "
     "and leaves weights: name a generate or annotate stage"),
    ("stages.rl.trajectories=stage:rl", "stages[1].trajectories: 'stage:rl' is this very stage"),
    ("stages.rl.algorithm={name: dpo, unit: row}", "stages[1].algorithm: algorithm 'dpo': the loss "
     "dpo compares samples of a prompt: set unit to pair"),
    ("stages.rl.algorithm=dpo", "stages[1].env: 'arithmetic' has one written answer a task, and "
     "algorithm 'dpo' compares several: use preferences, learn from sampled groups "
     "(`trajectories: stage:NAME`), or let the policy sample"),
    ("stages.rl.algorithm=weighted_sft", "stages[1].env: 'arithmetic' has one written answer a "
     "task, and algorithm 'weighted_sft' chooses among or weighs several: use preferences"),
    ("stages.rl.algorithm={name: simpo, kl: {coef: 0.1}}", "stages[1].algorithm: algorithm "
     "'simpo': the loss simpo has no use for `kl.coef`: remove it"),
    ("stages.rl.algorithm=raft stages.rl.reward=null stages.rl.evaluate=null",
     "stages[1].reward: algorithm 'raft' learns from rewards, name one"),
    ("stages.rl.algorithm={name: dpo, samples_from: policy} stages.rl.reward=null "
     "stages.rl.evaluate=null", "stages[1].reward: algorithm 'dpo' learns from rewards, name one"),
    ("stages.rl.kind=generate stages.rl.algorithm=null",
     "stages[1].algorithm: a generate stage needs one, its samples_per_prompt says how many"),
    ("stages.rl.kind=evaluate stages.rl.evaluate=null",
     "stages[1].evaluate: an evaluate stage needs this block, here or at the top"),
    ("stages.rl.algorithm.off_policy={correction: truncate, high: 2}", "stages[1].algorithm: "
     "algorithm 'grpo': off_policy.correction is truncate but proximal is behaviour"),
    ("stages.rl.algorithm.proximal=learner stages.rl.algorithm.off_policy.correction=mask",
     "stages[1].algorithm: algorithm 'grpo': off_policy.correction is mask: set off_policy.low"),
    ("stages.rl.algorithm.samples_per_prompt=1", "stages[1].algorithm: algorithm 'grpo': a group "
     "of one has no group-relative advantage"),
    ("reward.formula=corect", "stages[0].reward.formula: formula 'corect': no component is named "
     "'corect'; did you mean 'correct'?"),
    ("reward.formula='1 +'", "stages[0].reward.formula: formula '1 +', column "),
    ("reward.formula='open(3)'", "stages[0].reward.formula: formula 'open(3)', column 1: only "
     "numbers, component names"),
    ("reward.components={correct: exakt}", "stages[0].reward.components.correct: no reward is "
     "named 'exakt': did you mean 'exact'?"),
    ("reward.components.correct.aftr=x", "stages[0].reward.components.correct: reward 'exact' has "
     "no option 'aftr': did you mean 'after'?"),
    ("reward.within={corect: 1.0}", "stages[0].reward.within.corect: there is no component "
     "'corect'; did you mean 'correct'?"),
    ("reward.within={correct: 1.0}", "stages[0].reward.within.correct: the component 'correct' "
     "(Exact) says nothing of parts of a trajectory: choose one that does"),
    ("stages.rl.reward.components.turns={reward: by_turn, rule: exact} "
     "stages.rl.reward.within={turns: 1}", "stages[1].reward.within: pays rewards within a sample, "
     "and the advantage group_relative is of whole samples: remove it"),
    ("stages.rl.algorithm=mapo", "stages[1].reward.within: the advantage turn_mixed compares turns "
     "by rewards of their own: weigh a component that gives them"),
    ("reward.components.turns={reward: by_turn, rule: length, target: 1, limit: 2}",
     "stages[0].reward.components.turns: rule 'length' does not judge a text by itself"),
    ("env.tries=0", "stages[0].env: arithmetic: tries is 0"),
    ("reward={formula: '1', components: {}}",
     "stages[0].reward.components: there are none, name at least one"),
    ("evaluate.metric=corect",
     "stages[0].evaluate.metric: there is no component 'corect'; did you mean 'correct'?"),
    ("learner.backend=plane", "learner.backend: there is no 'plane'; did you mean 'plain'?"),
    ("evaluate.prompts=0", "stages[0].evaluate.prompts: is 0, must be at least 1"),
    ("evaluate.temperature=-1", "stages[0].evaluate.temperature: is -1, must be at least 0"),
    ("env=arithmetik", "stages[0].env: no env is named 'arithmetik': did you mean 'arithmetic'?"),
    ("env.digitz=1", "stages[0].env: env 'arithmetic' has no option 'digitz': did you mean "
     "'digits'?"),
    ("env.digits=two", "stages[0].env: env 'arithmetic': option 'digits' cannot be 'two'"),
    ("reward.components.correct={reward: length, target: a, limit: 3}",
     "stages[0].reward.components.correct: reward 'length': option 'target' cannot be 'a'"),
    ("env.eval_size=0", "stages[0].env: arithmetic: eval_size is 0"),
    ("env.operations=['*']", "stages[0].env: task arithmetic/0*2: character '*' of"),
    ("env={name: gsm8k, train: absent.jsonl}",
     "stages[0].env: data absent.jsonl: there is no such file or folder"),
    ("model.context=5", "stages[0].env: 80 of 100 tasks measured do not fit model.context (5)"),
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["mapo", "reinforce_to_go", "rto"])
def test_rewards_within_are_for_algorithms_that_read_them(tmp_path: Path, algorithm: str) -> None:
    """Stages that sample nothing to train on, such as the warm start, may have the same reward."""
    overrides = (
        "reward.components.turns={reward: by_turn, rule: exact}",
        "reward.within={turns: 0.5}",
        f"stages.rl.algorithm={algorithm}",
    )
    assert cross_check(load(tmp_path, *overrides)) == []


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refuses(tmp_path: Path, overrides: str, message: str) -> None:
    problems = cross_check(load(tmp_path, *re.split(r" (?=stages\.)", overrides)))
    assert any(problem.startswith(message) for problem in problems), problems


def test_a_folder_for_weights_that_can_be_written_is_fine_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "shared" / "weights"
    loaded = load(tmp_path, "publish.transport=disk", f"publish.path={folder}")
    assert cross_check(loaded) == []
    assert list(folder.iterdir()) == []


def test_an_unknown_transport_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'publish\.transport'.* did you mean 'disk'"):
        load(tmp_path, "publish.transport=disc")


def test_a_learner_computes_no_wider_than_its_engines(tmp_path: Path) -> None:
    loaded = load(tmp_path, "model.dtype=bfloat16", "learner.precision=fp32")
    (problem,) = cross_check(loaded)
    assert problem.startswith("learner.precision: is fp32 with model.dtype bfloat16")
    assert cross_check(load(tmp_path, "learner.precision=bf16")) == []


def test_deterministic_needs_staleness_zero(tmp_path: Path) -> None:
    loaded = load(tmp_path, "run.deterministic=true", "rollout.max_staleness=2")
    assert cross_check(loaded) == [
        "rollout.max_staleness: is 2, but run.deterministic needs 0: with more, the weights that "
        "sample depend on timing"
    ]


def test_truncation_is_fine_where_nothing_trains_on_samples(tmp_path: Path) -> None:
    loaded = load(tmp_path, "rollout.top_p=0.9", "rollout.temperature=0", "stages.rl.kind=generate")
    assert cross_check(loaded) == []


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    loaded = load(tmp_path, "rollout.top_k=5", "stages.rl.steps=0", "env.digits=0")
    keys = [problem.split(":")[0] for problem in cross_check(loaded)]
    assert keys == ["rollout.top_k", "stages[1].steps", "stages[0].env", "stages[1].env"]


def test_a_survey_at_hand_is_not_made_again(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    surveyed = survey.Survey(14, {}, ("stages[0].env: as surveyed",))
    assert cross_check(loaded, surveyed) == ["stages[0].env: as surveyed"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 10, "max_position_embeddings": 64}, "model.tokenizer: it has 14 tokens, "
         "the model in '{path}' 10 embeddings: choose the tokenizer that the model was made with"),
        ({"vocab_size": 14, "max_position_embeddings": 16}, "model.context: is 24, the model in "
         "'{path}' was made for at most 16"),
        (None, "model.path: cannot read {path}/config.json: "),
    ],
)  # fmt: skip
def test_a_model_folder_goes_with_tokenizer_and_context(
    tmp_path: Path, config: object, message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path, f"model.path={folder}", "model.build=null")
    [problem] = cross_check(loaded)
    assert problem.startswith(message.format(path=folder))


ROWS = [{"question": f"{i} + 1?", "answer": f"easy\n#### {i + 1}"} for i in range(8)]
GSM8K = (
    TINY.replace(
        "env: {name: arithmetic, digits: 1, eval_size: 20}",
        "env: {name: gsm8k, train: DATA, eval_size: 2}",
    )
    .replace('"char:0123456789+="', "byte")
    .replace("context: 24", "context: 64")
)


def told_of_rows(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = cross_check(load(folder, text=GSM8K.replace("DATA", str(data))))
    return [problem.replace(f"{folder}/", "") for problem in problems]


def test_rows_of_a_file(tmp_path: Path) -> None:
    assert told_of_rows(tmp_path, ROWS) == []


def test_a_row_that_lacks_a_field_is_named_by_number(tmp_path: Path) -> None:
    rows = [*ROWS[:3], {"question": "3 + 1?"}, *ROWS[4:]]
    assert told_of_rows(tmp_path, rows)[0].startswith(
        "stages[0].env: row 3 of rows.jsonl (line 4) has no field 'answer'"
    )


def test_many_broken_rows_are_counted_out(tmp_path: Path) -> None:
    rows = [*[{"question": "?"}] * 5, *ROWS]
    own = [line for line in told_of_rows(tmp_path, rows) if line.startswith("stages[0]")]
    assert [line.split(" (line")[0] for line in own[:3]] == [
        f"stages[0].env: row {index} of rows.jsonl" for index in range(3)
    ]
    assert own[3:] == ["stages[0].env: 2 more tasks are broken"]


def test_the_longest_prompt_is_named(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "x" * 60, "answer": "#### 1"}, *ROWS]
    told = told_of_rows(tmp_path, rows)
    assert told == [
        "stages[0].env: 1 of 17 tasks measured do not fit model.context (64); the longest is task "
        "gsm8k/train/8 with a prompt of 79 tokens and a given answer of 7: raise model.context to "
        "86 at least, or filter the tasks",
        "stages[1].env: 1 of 17 tasks measured do not fit model.context (64); the longest is task "
        "gsm8k/train/8 with a prompt of 79 tokens: raise model.context to 80 at least, or filter "
        "the tasks",
    ]


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    assert told_of_rows(tmp_path, [])[0] == (
        "stages[0].env: data rows.jsonl: there are no rows in it"
    )
