"""Short forms, inheritance, overrides, the resolved copy, and what may change on resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.algorithms.part_settings import FilterSettings
from manta.algorithms.presets import PRESETS
from manta.orchestrator import run_file, yaml_tree
from manta.orchestrator.config import ComponentConfig, EnvConfig, RunFile
from manta.orchestrator.run_changes import changes
from manta.orchestrator.run_file import RunFileError

TEXT = """\
run: {name: tiny}
model:
  build: {layers: 1, width: 8, heads: 2, mlp_width: 16}
env: {name: arithmetic, digits: 2}
reward:
  formula: correct
  components: {correct: exact}
stages:
  - name: warm
    algorithm: sft
    evaluate: {prompts: 8}
    steps: 3
  - name: rl
    algorithm: {name: grpo, clip_high: 0.3, kl: {coef: 1e-3}}
    steps: 5
    reward: {formula: a + b, components: {a: {reward: exact, strip: true}, b: , c: {low: 1}}}
"""


def load(folder: Path, *overrides: str, text: str = TEXT) -> RunFile:
    path = folder / "run.yaml"
    path.write_text(text)
    return run_file.load(path, overrides)


def refused(folder: Path, *overrides: str, text: str = TEXT) -> list[str]:
    with pytest.raises(RunFileError) as caught:
        load(folder, *overrides, text=text)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_an_algorithm_is_a_preset_with_settings_laid_over(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    warm, rl = (stage.algorithm for stage in loaded.stages)
    grpo = PRESETS["grpo"]
    assert warm == PRESETS["sft"]
    assert rl is not None
    assert (rl.clip_low, rl.clip_high) == (grpo.clip_low, 0.3)
    assert (rl.kl.coef, rl.kl.estimator) == (1e-3, grpo.kl.estimator)
    assert rl.samples_per_prompt == grpo.samples_per_prompt


@pytest.mark.parametrize(
    ("block", "key", "why"),
    [
        ("name: grpo, beta: 0.1", "beta", "loss is clipped_surrogate, which does not read it"),
        ("name: sapo, clip_high: 0.2", "clip_high", "loss is sapo, which does not read it"),
        ("name: ppo, divide_by_std: true", "divide_by_std", "advantage is gae, which"),
        ("name: dpo, aggregation: token_mean", "aggregation", "loss is dpo, which is a mean over"),
        ("name: grpo, constant_length: 512", "constant_length", "aggregation is sequence_mean,"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_whatever_it_says(
    tmp_path: Path, block: str, key: str, why: str
) -> None:
    [problem] = refused(tmp_path, f"stages.rl.algorithm={{{block}}}")
    assert f"{key}': has no effect here ({why}" in problem
    load(tmp_path, "stages.rl.algorithm={name: dr_grpo, constant_length: 512}")


def test_filters_are_a_list_of_names_or_of_names_with_settings(tmp_path: Path) -> None:
    key = "stages.rl.algorithm.filters"
    loaded = load(tmp_path, f"{key}=[zero_variance, {{name: max_variance, keep: 8}}]")
    algorithm = loaded.stages[1].algorithm
    assert algorithm is not None and algorithm.filters == (
        FilterSettings("zero_variance"),
        FilterSettings("max_variance", keep=8),
    )
    changed = load(tmp_path, f"{key}=[max_variance]", f"{key}.max_variance.keep=4")
    assert changed.stages[1].algorithm.filters == (FilterSettings("max_variance", keep=4),)  # type: ignore[union-attr]
    copy = tmp_path / "config.yaml"
    copy.write_text(run_file.dump(loaded))
    assert run_file.load(copy) == loaded
    told = refused(tmp_path, f"{key}=[zero_varianse]")
    assert "did you mean 'zero_variance'?" in told[0]


def test_stages_inherit_whole_blocks_or_have_their_own(tmp_path: Path) -> None:
    warm, rl = load(tmp_path).stages
    assert warm.env == rl.env == EnvConfig("arithmetic", {"digits": 2})
    assert warm.reward is not None and warm.reward.formula == "correct"
    assert warm.reward.components == {"correct": ComponentConfig("exact")}
    assert rl.reward is not None and rl.reward.components == {
        "a": ComponentConfig("exact", {"strip": True}),
        "b": ComponentConfig("b"),
        "c": ComponentConfig("c", {"low": 1}),
    }
    assert warm.evaluate is not None and warm.evaluate.prompts == 8
    assert rl.evaluate is None


def test_null_in_a_stage_is_having_none(tmp_path: Path) -> None:
    text = TEXT.replace("evaluate: {prompts: 8}", "env: null") + "evaluate: {prompts: 9}\n"
    warm, rl = load(tmp_path, text=text).stages
    assert warm.env is None and rl.env is not None
    assert warm.evaluate is not None and warm.evaluate.prompts == 9


OVERRIDES = [
    ("run.name=other", lambda r: r.run.name, "other"),
    ("run.max_hours=1", lambda r: r.run.max_hours, 1.0),
    ("stages.0.steps=7", lambda r: r.stages[0].steps, 7),
    ("stages.rl.steps=7", lambda r: r.stages[1].steps, 7),
    ("stages.rl.algorithm.clip_low=1e-1", lambda r: r.stages[1].algorithm.clip_low, 0.1),
    ("stages.warm.algorithm.kl.coef=2", lambda r: r.stages[0].algorithm.kl.coef, 2.0),
    ("stages.warm.algorithm=grpo", lambda r: r.stages[0].algorithm.name, "grpo"),
    ("learner.betas=[0.5, 0.6]", lambda r: r.learner.betas, (0.5, 0.6)),
    ("rollout.simulated.length_sigma=0", lambda r: r.rollout.simulated.length_sigma, 0.0),
    ("env.digits=3", lambda r: [s.env.options["digits"] for s in r.stages], [3, 3]),
    ("stages.rl.env.digits=3", lambda r: [s.env.options["digits"] for s in r.stages], [2, 3]),
    ("env=gsm", lambda r: r.stages[0].env, EnvConfig("gsm")),
    ("stages.rl.env=null", lambda r: r.stages[1].env, None),
    ("track={wandb: {project: p}}", lambda r: r.track.wandb.project, "p"),
    ("reward.components.correct.strip=true",
     lambda r: r.stages[0].reward.components["correct"],
     ComponentConfig("exact", {"strip": True})),
    ("env.text='a=b'", lambda r: r.stages[0].env.options["text"], "a=b"),
    ("model.tokenizer=char:01=", lambda r: r.model.tokenizer, "char:01="),
]  # fmt: skip


@pytest.mark.parametrize(("text", "look", "expected"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_override(tmp_path: Path, text: str, look, expected: object) -> None:  # type: ignore[no-untyped-def]
    assert look(load(tmp_path, text)) == expected


def test_the_last_override_wins_and_stages_win_over_the_top(tmp_path: Path) -> None:
    loaded = load(tmp_path, "stages.rl.env.digits=5", "env.digits=3", "env.digits=4")
    assert [stage.env and stage.env.options["digits"] for stage in loaded.stages] == [4, 5]


BAD_OVERRIDES = [
    ("stages.rl.stepz=5", "override 'stages.rl.stepz=5': key 'stages[1].stepz': unknown key; "
     "did you mean 'steps'?"),
    ("learner.workers=two", "override 'learner.workers=two': key 'learner.workers': expected a "
     "whole number (int), found 'two' (str)"),
    ("stages.sl.steps=5",
     "override 'stages.sl.steps=5': 'stages' has no item 'sl'; it has 0 (warm), 1 (rl)"),
    ("stages.2.steps=5",
     "override 'stages.2.steps=5': 'stages' has no item '2'; it has 0 (warm), 1 (rl)"),
    ("run.name.x=5", "override 'run.name.x=5': 'run.name' is 'tiny', it has no key 'x'"),
    ("run.name", "override 'run.name': write it as key.sub=value"),
    ("run..name=3", "override 'run..name=3': write it as key.sub=value"),
    ("=3", "override '=3': write it as key.sub=value"),
    ("learner.betas=[1", "override 'learner.betas=[1': not valid YAML: expected ',' or ']', "
     "but got '<stream end>'"),
    ("learner={workers: 1, workers: 2}",
     "override 'learner={workers: 1, workers: 2}': key 'learner.workers': given twice"),
    ("stages.rl.algorithm=grop", "override 'stages.rl.algorithm=grop': key "
     "'stages[1].algorithm': unknown algorithm 'grop'; did you mean 'grpo'?"),
    ("run.seed=", "override 'run.seed=': key 'run.seed': expected a whole number (int), "
     "found nothing (null)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_OVERRIDES, ids=[o[0] for o in BAD_OVERRIDES])
def test_a_bad_override_is_named(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text) == [message]


BAD_FILES = [
    ("clip_high", "clip_hi",
     "run.yaml:14: key 'stages[1].algorithm.clip_hi': unknown key; did you mean 'clip_high'?"),
    ("coef: 1e-3", "coef: x", "run.yaml:14: key 'stages[1].algorithm.kl.coef': expected a number "
     "(float), found 'x' (str)"),
    ("algorithm: sft", "algorithm: 3", "run.yaml:10: key 'stages[0].algorithm': expected a "
     "mapping with the keys name, samples_from, samples_per_prompt"),
    ("algorithm: sft", "algorithm: {clip_low: 0.1}",
     "run.yaml:10: key 'stages[0].algorithm.name': missing required key"),
    ("name: grpo", "name: grp", "run.yaml:14: key 'stages[1].algorithm.name': unknown algorithm "
     "'grp'; did you mean 'grpo'?"),
    ("env: {name: arithmetic, digits: 2}", "env: {digits: 2}",
     "run.yaml:4: key 'env.name': missing required key"),
    ("env: {name: arithmetic, digits: 2}", "env: {name: a, options: {digits: 2}}",
     "run.yaml:4: key 'env.options': unknown key; write options beside 'name', not below"),
    ("formula: correct", "formla: correct",
     "run.yaml:6: key 'reward.formla': unknown key; did you mean 'formula'?"),
    ("correct: exact", "correct: 3", "run.yaml:7: key 'reward.components.correct': expected a "
     "mapping with the keys reward, options, found 3 (int)"),
    ("{correct: exact}", "3", "run.yaml:7: key 'reward.components': expected a mapping, found 3"),
    ("evaluate: {prompts: 8}", "evaluate: {promts: 8}",
     "run.yaml:11: key 'stages[0].evaluate.promts': unknown key; did you mean 'prompts'?"),
    ("run: {name: tiny}", "runn: {name: tiny}",
     "run.yaml:1: key 'runn': unknown key; did you mean 'run'?"),
    ("name: rl", "kind: trian\n    name: rl", "run.yaml:13: key 'stages[1].kind': expected one of "
     "'train', 'generate', 'evaluate', 'annotate', 'merge', found 'trian' (str); did you mean "
     "'train'?"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "message"), BAD_FILES, ids=[b for _, b, _ in BAD_FILES])
def test_a_bad_key_is_told_with_its_line(tmp_path: Path, good: str, bad: str, message: str) -> None:
    assert good in TEXT
    assert refused(tmp_path, text=TEXT.replace(good, bad))[0].startswith(message)


def test_a_bad_inherited_block_is_told_once(tmp_path: Path) -> None:
    text = TEXT + "evaluate: {metrik: x}\n"
    assert refused(tmp_path, text=text.replace("    evaluate: {prompts: 8}\n", "")) == [
        "run.yaml:16: key 'evaluate.metrik': unknown key; did you mean 'metric'?"
    ]


BAD_TEXTS = [
    ("", "run.yaml: the run file is empty"),
    ("# only words", "run.yaml: the run file is empty"),
    ("- a", "run.yaml:1: expected a mapping at the top"),
    ("a: [", "run.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"),
    ("run: {name: x}", "run.yaml:1: key 'model': missing required key"),
    ("stages: 3", "run.yaml:1: key 'run': missing required key"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS)
def test_a_file_that_is_no_run_file(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text=text)[0] == message


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"absent\.yaml: there is no such run file"):
        run_file.load(tmp_path / "absent.yaml")
    with pytest.raises(RunFileError, match="cannot be read: Is a directory"):
        run_file.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: \xff")
    with pytest.raises(RunFileError, match=r"latin\.yaml: is not UTF-8 text"):
        run_file.load(tmp_path / "latin.yaml")


def test_the_resolved_copy_loads_to_an_equal_tree(tmp_path: Path) -> None:
    loaded = load(tmp_path, "model.tokenizer='1e5'", "env.deep=[1, {x: null}]", "stages.0.env=null")
    copy = tmp_path / "config.yaml"
    copy.write_text(run_file.dump(loaded))
    again = run_file.load(copy)
    assert again == loaded
    assert run_file.fingerprint(again) == run_file.fingerprint(loaded)
    assert changes(loaded, again) == []
    assert yaml_tree.plain(yaml_tree.parse(copy.read_text(), "copy", [])) == (
        run_file.resolved(loaded)
    )


RESUME = [
    ("run.max_hours=3", "run.max_hours: null -> 3.0"),
    ("run.dir=elsewhere", 'run.dir: "runs" -> "elsewhere"'),
    ("run.deadline_minutes=5", "run.deadline_minutes: 30.0 -> 5.0"),
    ("track={wandb: {project: p}}", 'track.wandb.project: absent -> "p"'),
    ("checkpoint.every_steps=1", "checkpoint.every_steps: 20 -> 1"),
    ("publish={transport: disk, path: /shared}", 'publish.path: null -> "/shared"'),
    ("mismatch_guard.limit_kl=1", "mismatch_guard.limit_kl:"),
    ("health.frozen_after_seconds=9", "health.frozen_after_seconds:"),
    ("rollout.workers=4", "rollout.workers: 1 -> 4"),
    ("rollout.workers={min: 1, max: 4}", "rollout.workers.max: absent -> 4"),
    ("learner.workers=2", "learner.workers: 1 -> 2"),
    ("learner.threads=2", "learner.threads:"),
    ("learner.backend=fsdp", 'learner.backend: "plain" -> "fsdp"'),
    ("learner.devices=1", "learner.devices: 0 -> 1"),
    ("learner.deepspeed.stage=3", "learner.deepspeed.stage:"),
    ("reward_workers.workers=4", "reward_workers.workers:"),
    ("stages.rl.steps=6", "stages.rl.steps: 5 -> 6"),
]  # fmt: skip
REFUSED = [
    ("learner.precision=bf16", ['learner.precision: "auto" -> "bf16" (may not change)']),
    ("stages.rl.steps=4", ["stages.rl.steps: 5 -> 4 (may only grow)"]),
    ("run.seed=1", ["run.seed: 0 -> 1 (may not change)"]),
    ("rollout.max_staleness=1", ["rollout.max_staleness: 0 -> 1 (may not change)"]),
    ("stages.warm.env.digits=3", ["stages.warm.env.digits: 2 -> 3 (may not change)"]),
    ("stages.warm.env.steps=3", ["stages.warm.env.steps: absent -> 3 (may not change)"]),
    ("stages.warm.env.new=x", ['stages.warm.env.new: absent -> "x" (may not change)']),
    ("stages.rl.name=r", ['stages: ["warm", "rl"] -> ["warm", "r"] (may not change)']),
    ("stages.rl.algorithm.clip_low=0.1",
     ["stages.rl.algorithm.clip_low: 0.2 -> 0.1 (may not change)"]),
]  # fmt: skip


@pytest.mark.parametrize(("override", "told"), RESUME, ids=[o for o, _ in RESUME])
def test_what_may_change_on_resume(tmp_path: Path, override: str, told: str) -> None:
    old, new = load(tmp_path), load(tmp_path, override)
    found = changes(old, new)
    assert any(str(change).startswith(told) for change in found), [*map(str, found)]
    assert not any(change.problem for change in found)
    assert run_file.fingerprint(old) == run_file.fingerprint(new)


@pytest.mark.parametrize(("override", "told"), REFUSED, ids=[o for o, _ in REFUSED])
def test_what_may_not_change_on_resume(tmp_path: Path, override: str, told: list[str]) -> None:
    old, new = load(tmp_path), load(tmp_path, override)
    assert [str(change) for change in changes(old, new)] == told
    shrinks = "may only grow" in told[0]
    assert (run_file.fingerprint(old) == run_file.fingerprint(new)) == shrinks


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hush@bucket/kept",
        "s3://AKIA:hush/hush+/x@bucket/kept",
        "s3://AKIA:hush%2Fx@bucket/kept?region=eu",
        "gs://hush@bucket/kept",
        "abfss://container:hush@account.dfs.core.windows.net/kept",
        "https://hush@host:8080/kept",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_shown(tmp_path: Path, uri: str) -> None:
    told = "credentials in a URI would be written into the run directory and shown: remove"
    text = TEXT + f"checkpoint: {{path: '{uri}'}}\n"
    [problem] = refused(tmp_path, text=text)
    assert problem.startswith(f"run.yaml:17: key 'checkpoint.path': {told}")
    [problem] = refused(tmp_path, f"publish.path={uri}")
    assert problem.startswith("override 'publish.path=")
    assert f"key 'publish.path': {told}" in problem
    for key in ("stages.rl.trajectories", "env.root", "checkpoint.pathh"):
        assert told in " ".join(refused(tmp_path, f"{key}={uri}"))
    shown = refused(tmp_path, f"checkpoint.keep={uri}", text=text)
    assert len(shown) > 1
    assert not [problem for problem in shown if "hush" in problem or "AKIA" in problem]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/kept@2?endpoint_override=localhost:9000",
        "s3://bucket:9000/a@b",
        "gs://anonymous@bucket/kept",
        "abfss://container@account.dfs.core.windows.net/kept",
        "http://[::1]:9000/a@b",
        "file:///kept/a:b@c",
        "/kept/a@b",
        "text with s3://a:b@c in it",
    ],
)
def test_a_uri_without_credentials_is_not(tmp_path: Path, uri: str) -> None:
    assert load(tmp_path, f"checkpoint.path='{uri}'").checkpoint.path == uri
