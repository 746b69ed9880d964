"""What the doctor says of run directories, some of them with real processes behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from manta.actors.examination import Examined
from manta.actors.processes import Known, this_process
from manta.actors.vitals import Identity
from manta.orchestrator import doctor_report, status
from manta.orchestrator.cli import main
from manta.orchestrator.doctor import Diagnosis, diagnose
from manta.orchestrator.doctor_visit import visit
from manta.orchestrator.health import WorkerReport
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.runs import held_up
from manta.orchestrator.status import RayStatus, Status, WaitStatus

ENGINE = Identity(Known("far", 7, 1.0), "node", "/log", 3)
EXAMINED = Examined("stopped (state T): something sent it SIGSTOP", 0.0, "", "last words")


def living(now: float, **changes: object) -> Status:
    """Of a run whose steps take 4 s, the last of which ended at 100 s of its clock."""
    first = Status(
        written=now,
        state="running",
        run="demo",
        stage="rl",
        stage_step=12,
        stage_steps=200,
        step=12,
        seconds=102.0,
        incarnation=0,
        driver=this_process(),
        ray=RayStatus("127.0.0.1:1", "session", ""),
        waits=(WaitStatus("group 3 of 8 from the environment workers", now - 2, 1800),),
        workers=(worker("policy-0", "rollout", "alive", 1.0, "generate"),),
    )
    return replace(first, **changes)  # type: ignore[arg-type]


def worker(name: str, role: str, state: str, silent: float, doing: str = "") -> WorkerReport:
    return WorkerReport(name, role, name, state, silent, doing, ENGINE, 1 << 30)  # type: ignore[arg-type]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "demo")
    directory.create()
    directory.config.write_text("run: {name: demo}\n")
    lines = [
        {"stage": "rl", "step": i, "seconds": 100 - 4 * (12 - i), "time/step": 4.0}
        for i in range(1, 13)
    ]
    directory.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return directory


def look(directory: RunDirectory, found: Status) -> Diagnosis:
    def seen(status: Status, workers: Sequence[Identity]) -> tuple[Mapping[Known, Examined], str]:
        return {each.process: EXAMINED for each in workers}, ""

    status.write(directory.status, found)
    with directory.lock():
        return diagnose(directory.root, seen)


def told(diagnosis: Diagnosis) -> str:
    console = Console(file=StringIO(), width=100)
    doctor_report.show(diagnosis, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_run_that_is_well_says_what_it_waits_for(directory: RunDirectory) -> None:
    found = look(directory, living(time.time()))
    assert found.is_well
    text = told(found)
    assert "demo: It is well." in text
    assert "usually 4.0 s each; the last one ended 2.0 s ago" in text
    assert "group 3 of 8 from the environment workers: 2.0 s" in text
    assert "last words" not in text


def test_a_worker_without_signs_is_named_with_what_its_machine_says(
    directory: RunDirectory,
) -> None:
    frozen = worker("policy-1", "rollout", "silent", 95.0, "generate x4")
    found = look(directory, living(time.time(), workers=(frozen,), seconds=200.0))
    assert not found.is_well and found.is_driver_alive
    text = told(found)
    assert "Held up by policy-1. The driver waits for group 3 of 8" in text
    assert "no sign of life for 1 min 35 s" in text or "no sign of life for 95" in text
    assert "stopped (state T)" in text and "last words" in text
    assert "kill -CONT 7 on far" in text
    assert "the run begins anew or ends by itself in" in text


def test_a_worker_without_a_node_holds_nobody_up(directory: RunDirectory) -> None:
    here = worker("policy-0", "rollout", "alive", 1.0)
    waiting = worker("policy-1", "rollout", "waiting", 45.0, "waits for a node (2 CPU)")
    unplaced = replace(waiting, identity=None)
    found = look(directory, living(time.time(), workers=(here, unplaced)))
    assert found.is_well
    text = told(found)
    assert "It is well. Waiting for a node: policy-1." in text
    assert "What to do: policy-1 waits for a node (2 CPU) for 45.0 s: ray status" in text
    assert list(held_up(directory)) == ["waiting for a node: policy-1"]
    stands = look(directory, living(time.time(), workers=(here, unplaced), seconds=200.0))
    assert not stands.is_well
    assert "No step ends" in told(stands) and stands.culprits == ()


def test_steps_that_stand_although_all_answer_show_who_is_at_work(
    directory: RunDirectory,
) -> None:
    found = look(directory, living(time.time(), seconds=200.0))
    assert not found.is_well
    assert found.standing_seconds == pytest.approx(100.0, abs=1.0)
    assert "No step ends, although every worker gives signs of life." in told(found)
    assert [each.worker.name for each in found.culprits] == ["policy-0"]


def test_a_dead_driver_is_told_with_the_command_that_goes_on(directory: RunDirectory) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone = Known(this_process().host, process.pid, time.time())
    status.write(directory.status, living(time.time() - 100, driver=gone))
    found = diagnose(directory.root, visit)
    assert not found.is_driver_alive and not found.is_well
    text = told(found)
    assert f"process {process.pid} on {gone.host} is gone; last sign 1" in text
    assert f"manta train {directory.config} run.dir={directory.root.parent}" in text


def test_a_driver_of_that_number_without_the_lock_is_another_process(
    directory: RunDirectory,
) -> None:
    status.write(directory.status, living(time.time()))
    assert not diagnose(directory.root, visit).is_driver_alive


def test_a_driver_that_writes_no_more_stands_still_itself(directory: RunDirectory) -> None:
    found = look(directory, living(time.time() - 60, seconds=101.0))
    assert "The driver itself stands still" in told(found)


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ("finished", "", "It is finished."),
        ("stopped", "", "It was stopped at step 12, and saved."),
        ("failed", "NoEngineLeft: none", "It failed at step 12: NoEngineLeft: none"),
    ],
)
def test_a_run_that_ended_says_how(
    directory: RunDirectory, state: str, error: str, words: str
) -> None:
    found = look(directory, living(time.time(), state=state, error=error))
    assert words in told(found)
    assert found.is_well == (state != "failed")
    assert bool(found.advice) == (state != "finished")


def test_workers_out_of_reach_are_said_to_be(directory: RunDirectory) -> None:
    frozen = worker("policy-1", "rollout", "silent", 95.0)
    status.write(directory.status, living(time.time(), workers=(frozen,)))
    with directory.lock():
        text = told(diagnose(directory.root, visit))
    assert "Not looked at: nothing answers at 127.0.0.1:1, so far could not be looked at" in text


def test_json_says_the_same(directory: RunDirectory) -> None:
    frozen = worker("policy-1", "rollout", "silent", 95.0)
    found = json.loads(doctor_report.as_json(look(directory, living(1e9, workers=(frozen,)))))
    assert found["culprits"][0]["worker"]["name"] == "policy-1"
    assert found["culprits"][0]["examined"]["log"] == "last words"


def test_no_word_of_the_environment_is_told(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    found = look(directory, living(time.time(), seconds=500.0))
    assert "0123456789abcdef" not in told(found) + doctor_report.as_json(found)
    assert "0123456789abcdef" in os.environ["WANDB_API_KEY"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere", None, "is no folder"),
        ("", None, "is no run directory"),
        ("demo", None, "status.json does not exist"),
        ("demo", '{"format": 99}', "has format 99, this version of manta reads 1"),
        ("demo", '{"format": 1}', "is damaged"),
        ("demo", "{", "cannot be read"),
        ("demo", "[]", "has format None"),
    ],
)
def test_what_is_no_run_is_refused(
    directory: RunDirectory,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    words: str,
) -> None:
    if content is not None:
        directory.status.write_text(content)
    assert main(["doctor", str(directory.root.parent / name)]) == 2
    assert words in capsys.readouterr().err


def test_a_status_comes_back_as_it_was_written(directory: RunDirectory) -> None:
    found = living(12.5, departed=(worker("policy-9", "rollout", "frozen", 3.0),))
    status.write(directory.status, found)
    assert status.read(directory.status) == found


def test_of_many_threads_those_that_only_wait_are_left_out() -> None:
    waiting = 'Thread 0x1 (most recent call first):\n  File "/lib/threading.py", line 3 in wait'
    working = 'Thread 0x2 (most recent call first):\n  File "/a/reward.py", line 3 in compare'
    assert doctor_report.telling(f"{waiting}\n\n{working}\n") == working
    assert doctor_report.telling(waiting) == waiting
