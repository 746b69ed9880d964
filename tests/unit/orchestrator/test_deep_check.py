"""What a deep check cuts from a run. The check itself is tried end to end."""

from __future__ import annotations

from pathlib import Path

from manta.orchestrator import run_file
from manta.orchestrator.deep_check import short

ROOT = Path(__file__).parent.parent.parent.parent

STAGES = """
run: {name: chain, max_hours: 3}
model: {build: {layers: 1, width: 8, heads: 1, mlp_width: 8}, tokenizer: byte, context: 64}
env: arithmetic
reward: {formula: correct, components: {correct: exact}}
evaluate: {every_steps: 5, prompts: 200}
reference: {model: "soup(step:100, stage:sft)"}
checkpoint: {every_steps: 2, path: "s3://far/away"}
track: {wandb: {project: manta}}
stages:
  - {name: sft, algorithm: sft, steps: 300}
  - {name: sample, kind: generate, algorithm: grpo, steps: 20, model: "step:200"}
  - {name: rl, algorithm: {name: ppo, critic: {warmup_steps: 9}}, steps: 50, start_from: "step:7"}
  - {name: mixed, kind: merge, models: ["step:300", "stage:rl"]}
  - {name: exam, kind: evaluate}
"""


def test_every_stage_stays_with_few_steps_and_none_of_what_lies_outside(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(STAGES)
    full = run_file.load(path)
    planned = short(full, "/folder")
    assert [stage.name for stage in planned.stages] == [stage.name for stage in full.stages]
    assert [stage.steps for stage in planned.stages] == [2, 1, 2, 0, 0]
    sft, sample, rl, mixed, _ = planned.stages
    assert planned.reference.model == "soup(initial, stage:sft)"
    assert (sample.model, rl.start_from, mixed.models) == (
        "initial",
        "initial",
        ("initial", "stage:rl"),
    )
    assert rl.algorithm is not None and rl.algorithm.critic is not None
    assert rl.algorithm.critic.warmup_steps == 0
    assert sft.evaluate is not None and sft.evaluate.prompts == 4
    assert (planned.run.dir, planned.run.max_hours) == ("/folder", None)
    assert (planned.checkpoint.path, planned.track.wandb) == (None, None)
    assert planned.rollout == full.rollout and planned.learner == full.learner


def test_a_stage_of_whose_samples_every_task_needs_one_keeps_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    judged = "  - {name: judged, kind: annotate, trajectories: stage:sample}\n"
    beside = "  - {name: xpo, algorithm: xpo, companions_from: stage:judged, steps: 9}\n"
    path.write_text(STAGES + judged + beside)
    planned = short(run_file.load(path), "/folder")
    assert [stage.steps for stage in planned.stages] == [2, 20, 2, 0, 0, 0, 2]
    assert planned.stages[1].model == "initial"
