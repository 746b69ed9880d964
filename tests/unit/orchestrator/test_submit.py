"""What `manta submit` and `manta runs` refuse before anything is sent, and what travels."""

from __future__ import annotations

import argparse
import socket
import time
from pathlib import Path

import pytest

from manta.orchestrator import run_file
from manta.orchestrator.cli import main
from manta.orchestrator.display import DisplayState, read_step_line, step_line
from manta.orchestrator.job_address import prepare_token
from manta.orchestrator.submit import _variables, submit
from tests.unit.orchestrator.tiny_run import write

SHARED = "run.dir=/shared/runs"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def send(folder: Path, *arguments: str, working_dir: Path | None = None) -> int:
    path = write(folder)
    return main(["submit", path, *arguments, "--working-dir", str(working_dir or folder)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SHARED, "stages.rl.stepz=3"], "key 'stages[1].stepz': unknown key; did you mean 'steps'"),
        ([SHARED, "rollout.top_k=3"], "rollout.top_k: is 3, must be 0 while training"),
        ([], "run.dir: is 'runs', a relative path: on the cluster that lies in a copy of the "
         "working directory which Ray deletes. Name a folder that all nodes share, such as "
         "run.dir=/shared/runs"),
        ([SHARED, "checkpoint.path=kept"], "checkpoint.path: is 'kept', a relative path"),
        ([SHARED, "--resume", "runs/tiny/checkpoints/step=000004"],
         "--resume: is 'runs/tiny/checkpoints/step=000004', a relative path: the job starts "
         "elsewhere. Give the number of the step"),
        ([SHARED, "--env", "HF_TOKEN"], "--env HF_TOKEN: it is not set here: export HF_TOKEN=..."),
        ([SHARED, "--env", "HF_TOKEN=abc"], "--env: give the name alone, 'HF_TOKEN': its value"),
        ([SHARED], "which cluster? give --address http://HEAD:8265"),
        ([SHARED, "--address", "head:8265"], "--address: is 'head:8265', must be the http://"),
        ([SHARED, "--address", "http://127.0.0.1:9"], "no Ray job server answers at "
         "http://127.0.0.1:9 ([Errno 111] Connection refused): is the cluster up"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_exits_2_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert send(tmp_path, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("manta submit: ")
    assert message in captured.err
    assert "abc" not in captured.err
    assert captured.out == ""


def test_a_run_file_must_travel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert send(tmp_path, SHARED, working_dir=other) == 2
    assert f"is not below the working directory {other}" in capsys.readouterr().err
    assert send(tmp_path, SHARED, working_dir=tmp_path / "absent") == 2
    assert "--working-dir: there is no folder" in capsys.readouterr().err


def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from manta.orchestrator import job_server

    assert job_server.SECONDS < 10
    monkeypatch.setattr(job_server, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        assert main(["runs", "list", "--address", address]) == 2
        assert time.monotonic() - start < 5
    assert f"manta runs: no Ray job server answers at {address} (" in capsys.readouterr().err


def test_a_token_is_sent_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setenv("RAY_AUTH_MODE", "x")
    monkeypatch.delenv("RAY_AUTH_MODE")
    prepare_token()
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="RAY_AUTH_TOKEN_PATH: there is no file"):
        prepare_token()
    (tmp_path / "token").write_text("abc")
    prepare_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_file_is_only_read_where_its_data_is_elsewhere(tmp_path: Path) -> None:
    """With --check-there the environment's file need not be here: only the address is missing."""
    loaded = run_file.load(
        write(tmp_path), [SHARED, "model.path=/shared/absent", "model.build=null"]
    )
    chosen = argparse.Namespace(
        working_dir=str(tmp_path),
        run_file=str(tmp_path / "run.yaml"),
        env=[],
        address=None,
        resume="auto",
    )
    with pytest.raises(ValueError, match="which cluster"):
        submit(chosen, loaded)


def test_variables_that_the_run_file_names_travel_where_they_are_set() -> None:
    here = {"AWS_SESSION_TOKEN": "a", "HF_TOKEN": "b", "WANDB_API_KEY": "c"}
    assert _variables(["HF_TOKEN"], ["AWS_SESSION_TOKEN", "ON_THE_NODES"], here) == {
        "AWS_SESSION_TOKEN": "a",
        "HF_TOKEN": "b",
    }


def test_a_step_is_read_back_from_its_line() -> None:
    state = DisplayState("rl@2", 3, 40, 33, 61.0)
    assert read_step_line(step_line(state)) == ("rl@2", 3, 40)
    assert read_step_line("[1.0 s] checkpoint: step 2") is None
    assert read_step_line("[48.5 s] warm-start step 4: held-out accuracy 0.0%") is None
