"""Warm start and reinforcement on real rows, killed and resumed."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow.json
import pyarrow.parquet
import pytest

from manta.envs.trajectory_files import TrajectoryReader
from tests.data import shared_data
from tests.e2e import runs

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 400 real rows, in Parquet."""
    path = tmp_path_factory.mktemp("gsm8k") / "rows.parquet"
    rows = pyarrow.json.read_json(shared_data("gsm8k-train.jsonl")).slice(0, 400)
    pyarrow.parquet.write_table(rows, path)
    return path


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


def test_twenty_steps_on_real_rows_killed_and_resumed(
    gsm8k: Path, tmp_path: Path, cluster: runs.Environment
) -> None:
    recipe = runs.ROOT / "recipes" / "gsm8k.yaml"
    overrides = (*SMALL, f"env.train={gsm8k}")
    process = runs.start(recipe, tmp_path, *overrides, env=cluster)
    runs.wait_for_step(tmp_path / "gsm8k", 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = runs.manta("train", recipe, tmp_path, *overrides, env=cluster)
    assert result.returncode == 0, result.stdout + result.stderr
    trained = runs.check_history(tmp_path / "gsm8k", 20)
    assert len(trained) == 20 * 8
    answers = pyarrow.parquet.read_table(gsm8k)["answer"].to_pylist()
    written = TrajectoryReader(tmp_path / "gsm8k" / "trajectories")
    assert len(written) == 20 * 8
    assert {str(written.task(i).reference) for i in range(8)} <= {
        answer.split("####")[1].strip().replace(",", "") for answer in answers
    }
