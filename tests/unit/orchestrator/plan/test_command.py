"""`manta plan` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from manta.orchestrator.cli import main
from tests.unit.orchestrator.tiny_run import TINY, write


def test_the_table_has_every_split_and_every_assumption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write(tmp_path), "--cpus", "4,2", "rollout.max_staleness=1"]) == 0
    output = capsys.readouterr().out
    assert "8 prompts x 4 samples a step, staleness at most 1" in output
    for word in ("assumed: cpu", "assumed: decoding", "assumed: publish", "lognormal", "4 CPUs"):
        assert word in output
    assert output.count("best: ") == 2
    assert "best: 1 engine and 1 learner rank: " in output
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"]


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", write(tmp_path), "--cpus", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["stage"], found["devices"]) == ("tiny", "rl", "CPUs")
    [plan] = found["plans"]
    assert [(s["engines"], s["ranks"]) for s in plan["splits"]] == [(3, 1), (2, 2), (1, 3)]
    assert sum(split["is_best"] for split in plan["splits"]) == 1
    assert all(split["step_seconds"] > 0 for split in plan["splits"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--gpus", "1"],
            "1 GPUs are too few: one engine takes 1 and one learner rank 1, 2 in all",
        ),
        (["--gpus", "eight"], "--gpus eight: give numbers of devices, such as 8,64,512"),
        (["--gpus", "8", "--device", "b200"], "--device b200: unknown; known are h100, h200"),
        (["--cpus", "8", "--from", "nowhere"], "--from nowhere: there is no config.yaml in it"),
        (
            ["--cpus", "8", "--stage", "warm"],
            "no stage called warm samples to train on; those that",
        ),
        (["--cpus", "8", "stages.rl.stepz=1"], "did you mean 'steps'?"),
    ],
)
def test_mistakes_exit_2_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["plan", write(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("manta plan: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_a_vllm_run_is_planned_where_there_is_no_vllm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TINY.replace("rollout: {", "rollout: {engine: vllm, devices: 1, ")
    assert main(["plan", write(tmp_path, text), "--gpus", "2", "--device", "a100"]) == 0
    assert "assumed: a100" in capsys.readouterr().out


def test_mistakes_are_told_before_anything_heavy_loads(tmp_path: Path) -> None:
    code = (
        "import sys; from manta.orchestrator.cli import main; "
        "code = main(sys.argv[1:]); assert not {'torch', 'ray'} & set(sys.modules); sys.exit(code)"
    )
    path = write(tmp_path, TINY.replace("steps: 5", "stepz: 5"))
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", path, "--gpus", "8"], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
