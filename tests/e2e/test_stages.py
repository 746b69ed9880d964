"""Stages other than sampling and training: writing, learning from what was written, real rows."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow.json
import pyarrow.parquet
import pytest

from manta.envs.trajectory_files import TrajectoryReader
from manta.orchestrator.ledger import read_ledger
from tests.data import shared_data
from tests.e2e import runs

pytestmark = pytest.mark.e2e

DUMP = """
run: {name: dump, seed: 0}
model:
  build: {layers: 2, width: 32, heads: 2, mlp_width: 64}
  tokenizer: "char:0123456789+="
  context: 16
env: {name: arithmetic, digits: 1, eval_size: 20}
reward: {formula: correct, components: {correct: exact}}
evaluate: {every_steps: 10, prompts: 20, gold_likelihood: true}
stages:
  - {name: sample, kind: generate, algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}},
     steps: 3, prompts_per_step: 8, evaluate: null}
  - {name: write, kind: generate, algorithm: sft, steps: 4, prompts_per_step: 16, evaluate: null}
  - {name: off-policy, algorithm: {name: grpo, samples_per_prompt: 4, kl: {coef: 0}},
     trajectories: stage:sample, steps: 2, prompts_per_step: 8}
  - {name: imitate, algorithm: sft, trajectories: stage:write, steps: 20, prompts_per_step: 16,
     learning_rate: 3e-3}
rollout: {max_new_tokens: 4}
environment: {groups_per_call: 8}
"""


def test_what_is_written_can_be_learnt_from(tmp_path: Path, cluster: runs.Environment) -> None:
    """Sampled and gold trajectories are written, then trained on without sampling: the held-out
    likelihood of gold answers rises."""
    run_file = tmp_path / "dump.yaml"
    run_file.write_text(DUMP)
    result = runs.manta("train", run_file, tmp_path, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = tmp_path / "dump"
    written = TrajectoryReader(run_dir / "products" / "sample")
    assert len(written) == 24
    assert all(len(written.group(i).trajectories) == 4 for i in range(24))
    by_stage = [(entry.stage, entry.outcome) for entry in read_ledger(run_dir / "ledger.jsonl")]
    assert by_stage.count(("sample", "written")) == 24
    assert by_stage.count(("write", "written")) == 64
    assert by_stage.count(("off-policy", "trained")) == 16
    assert by_stage.count(("imitate", "trained")) == 320
    gold = [
        line["eval/gold_logprob"]
        for line in runs.metrics(run_dir)
        if line["stage"] == "imitate" and "eval/gold_logprob" in line
    ]
    assert gold[-1] > gold[0] + 0.5


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 400 real rows, as JSON Lines and as the same rows in Parquet."""
    folder = tmp_path_factory.mktemp("gsm8k")
    lines = shared_data("gsm8k-train.jsonl").read_text().splitlines()[:400]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    table = pyarrow.json.read_json(folder / "rows.jsonl")
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    return folder


SMALL = (
    "model.build.layers=2",
    "model.build.width=32",
    "model.build.heads=2",
    "model.build.mlp_width=64",
    "rollout.max_new_tokens=24",
    "env.eval_size=32",
    "evaluate.prompts=16",
    "stages.rl.algorithm.samples_per_prompt=4",
    "checkpoint.every_steps=4",
)


@pytest.mark.parametrize("rows", ["rows.jsonl", "rows.parquet"])
def test_twenty_steps_on_real_rows_killed_and_resumed(
    gsm8k: Path, tmp_path: Path, cluster: runs.Environment, rows: str
) -> None:
    recipe = runs.ROOT / "recipes" / "gsm8k.yaml"
    overrides = (*SMALL, f"env.train={gsm8k / rows}")
    process = runs.start(recipe, tmp_path, *overrides, env=cluster)
    runs.wait_for_step(tmp_path / "gsm8k", 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = runs.manta("train", recipe, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    trained = runs.check_history(tmp_path / "gsm8k", 20)
    assert len(trained) == 20 * 8
    answers = [json.loads(line)["answer"] for line in (gsm8k / "rows.jsonl").open()]
    written = TrajectoryReader(tmp_path / "gsm8k" / "trajectories")
    assert len(written) == 20 * 8
    assert {str(written.task(i).reference) for i in range(8)} <= {
        answer.split("####")[1].strip().replace(",", "") for answer in answers
    }
