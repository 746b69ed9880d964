from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import wandb

from manta.actors.histogram import Histogram
from manta.orchestrator.config import WandbConfig
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.summary import DriverFigures, Summary, summarise_run
from manta.orchestrator.tracking import Tracker, WandbTracker

API_KEY = "0123456789" * 4


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    directory = RunDirectory(tmp_path / "runs" / "addition")
    directory.create()
    yield directory
    with contextlib.suppress(OSError):  # where the test killed the service
        wandb.teardown()


def summary(directory: RunDirectory) -> Summary:
    driver = DriverFigures(2.0, {"learn": 1.0}, 0.1, 1, {"trained": 3})
    return summarise_run(directory, [], driver, "finished")


def offline(directory: RunDirectory, reports: list[str]) -> WandbTracker:
    settings = WandbConfig(project="manta", mode="offline")
    config = {"run": {"name": "addition"}, "stages": [{"name": "rl", "steps": 3}]}
    return WandbTracker(settings, directory, "addition", config, reports.append)


def drive(tracker: Tracker, directory: RunDirectory, metrics: Mapping[str, float]) -> None:
    """What the loop does to every tracker."""
    tracker.log(1, metrics, {"histogram/reward": Histogram((0.0, 0.5, 1.0), (3.0, 5.0))})
    tracker.log(2, {})
    tracker.alert("addition: slow step", "a step took long")
    tracker.finish(summary(directory))


def offline_data(directory: RunDirectory) -> list[Path]:
    return list(directory.wandb.glob("offline-run-*/run-*.wandb"))


def test_an_offline_run_is_written_silently(
    directory: RunDirectory, capfd: pytest.CaptureFixture[str]
) -> None:
    reports: list[str] = []
    drive(offline(directory, reports), directory, {"reward/mean": 0.25, "eval/accuracy": 0.5})
    wandb.teardown()  # as at the end of the process: waits for the last bytes
    (data,) = offline_data(directory)
    content = data.read_bytes()
    names = (b"reward/mean", b"eval/accuracy", b"addition", b"phase_seconds/learn")
    for expected in (*names, b"histogram/reward", b'"histogram"'):
        assert expected in content
    assert capfd.readouterr() == ("", "")
    assert reports == []


def test_a_resumed_run_keeps_its_id_and_logs_steps_again(directory: RunDirectory) -> None:
    reports: list[str] = []
    drive(offline(directory, reports), directory, {"reward/mean": 0.25})
    time.sleep(1.1)  # wandb names its folders by the second
    drive(offline(directory, reports), directory, {"reward/mean": 0.75})
    data = offline_data(directory)
    assert len(data) == 2
    assert {path.name for path in data} == {f"run-{(directory.wandb / 'id').read_text()}.wandb"}
    assert reports == []


def test_no_key_is_written(directory: RunDirectory) -> None:
    drive(offline(directory, []), directory, {"reward/mean": 0.25})
    wandb.teardown()
    assert b"reward/mean" in offline_data(directory)[0].read_bytes()
    assert files_with_key(directory) == []


def test_a_tracker_whose_service_dies_is_reported_once(directory: RunDirectory) -> None:
    reports: list[str] = []
    others = _children()
    tracker = offline(directory, reports)
    (service,) = _children() - others
    os.kill(service, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not reports and time.monotonic() < deadline:
        tracker.log(1, {"reward/mean": 0.25})
        time.sleep(0.05)
    drive(tracker, directory, {"reward/mean": 0.25})
    assert len(reports) == 1
    assert reports[0].startswith("wandb stopped (log: ")


def test_a_tracker_that_cannot_connect_is_reported_once(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    reports: list[str] = []
    settings = WandbConfig(project="manta", mode="online")
    tracker = WandbTracker(settings, directory, "addition", {}, reports.append, start_seconds=2)
    drive(tracker, directory, {"reward/mean": 0.25})
    assert len(reports) == 1
    assert reports[0].startswith("wandb stopped (start: ")
    assert files_with_key(directory) == []


def files_with_key(directory: RunDirectory) -> list[Path]:
    files = [path for path in directory.root.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if API_KEY.encode() in path.read_bytes()]


def _children() -> set[int]:
    """Process ids of this process's children."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}
