"""Running the real command, and reading what a run left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manta.orchestrator.ledger import Entry, read_ledger
from manta.orchestrator.lives import lineage
from manta.orchestrator.run_file import load
from tests.e2e.place_account import check_places

ROOT = Path(__file__).parent.parent.parent
TINY = Path(__file__).parent / "tiny.yaml"
SECONDS = 240
Environment = dict[str, str]


def command(verb: str, run_file: Path, runs: Path, *overrides: str) -> list[str]:
    code = "import sys; from manta.orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, verb, str(run_file), f"run.dir={runs}", *overrides]


def environment() -> Environment:
    """In which a command starts a Ray of its own."""
    hidden = ("RAY_ADDRESS", "WANDB_API_KEY")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def manta(
    verb: str, run_file: Path, runs: Path, *overrides: str, env: Environment | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(verb, run_file, runs, *overrides),
        cwd=ROOT,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def doctor(run_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command("doctor", run_dir, run_dir)[:-1]],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def events(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def alarms(run_dir: Path) -> list[str]:
    """Kinds of those that a run raised by itself; a full disk is this machine's."""
    kinds = [event["fields"]["kind"] for event in events(run_dir) if event["name"] == "alarm"]
    return [kind for kind in kinds if not kind.startswith(("memory", "session disk", "run disk"))]


def told(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """The fields of every event called `name`, in order."""
    return [event["fields"] for event in events(run_dir) if event["name"] == name]


def wait_for_events(
    run_dir: Path, name: str, count: int = 1, seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """Their fields, once there are so many called `name`."""
    problem = f"{run_dir}: not {count} times {name}"
    wait_until(lambda: len(told(run_dir, name)) >= count, problem, seconds)
    return told(run_dir, name)


def wait_until(until: Callable[[], bool], problem: str, seconds: float = SECONDS) -> None:
    """Raises TimeoutError, telling the `problem`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise TimeoutError(problem)
        time.sleep(0.02)


def start(
    run_file: Path, runs: Path, *overrides: str, env: Environment | None = None
) -> subprocess.Popen[str]:
    """The command in a session of its own, as under a terminal."""
    return subprocess.Popen(
        command("train", run_file, runs, *overrides),
        cwd=ROOT,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(run_dir: Path, step: int) -> None:
    """Returns once the run's metrics hold `step`."""
    wait_until(
        lambda: any(line["step"] >= step for line in metrics(run_dir)),
        f"{run_dir} did not reach step {step}",
    )


def worker_events(run_dir: Path) -> list[tuple[str, str]]:
    """The name of each event, and the worker that it tells of."""
    return [(event["name"], event["fields"].get("worker", "")) for event in events(run_dir)]


def signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """As a terminal does: every process of the foreground group gets the signal."""
    os.killpg(process.pid, number)


def metrics(run_dir: Path) -> list[dict[str, float]]:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def summary(run_dir: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run_dir / "summary.json").read_text())
    return found


def last_step(run_file: Path) -> int:
    """How many steps its stages make together."""
    return sum(stage.steps for stage in load(run_file).stages)


def weights(run_dir: Path, step: int) -> bytes:
    """The learner's parameters at a checkpoint, as they stand in the file."""
    return (run_dir / f"checkpoints/step={step:06d}/learner/model.safetensors").read_bytes()


def check_history(run_dir: Path, steps: int, writing: Sequence[int] = ()) -> list[Entry]:
    """The ledger is whole and agrees with what the ranks wrote; the trained entries. `writing` are
    the steps that trained nothing, but wrote.

    Every task place that was admitted has one outcome, or is outstanding in the checkpoint; steps
    are trained once and in order; and the ranks' own hashes, of the steps that led to the final
    weights, are the ledger's.
    """
    entries = read_ledger(run_dir / "ledger.jsonl")
    trained = [entry for entry in entries if entry.outcome == "trained"]
    check_places(run_dir)
    assert sorted({*writing, *(entry.step for entry in trained)}) == list(range(1, steps + 1))
    assert {entry.step for entry in entries if entry.outcome == "written"} == set(writing)
    assert {(e.step, tuple(e.group), e.content_hash) for e in trained} == ranks_account(run_dir)
    return trained


def check_epochs(run_dir: Path, stage: str, num_tasks: int) -> None:
    """Each epoch of `stage` but the newest one trained, or left out, every task once."""
    entries = [e for e in read_ledger(run_dir / "ledger.jsonl") if e.stage == stage]
    newest = max(e.group.epoch for e in entries if e.outcome == "trained")
    assert newest > 1
    for epoch in range(newest):
        of_epoch = [e for e in entries if e.group.epoch == epoch and e.outcome != "dropped"]
        assert sorted(e.group.position for e in of_epoch) == list(range(num_tasks))
        trained = {e.content_hash for e in of_epoch if e.outcome == "trained"}
        skipped = {e.reason.partition(":")[0] for e in of_epoch if e.outcome == "skipped"}
        assert len(trained) + len(skipped) == num_tasks


def ranks_account(run_dir: Path) -> set[tuple[int, tuple[int, ...], str]]:
    """(step, group, hash) that ranks stepped on, in the history of the final weights."""
    last = lineage(run_dir / "incarnations.jsonl")
    account = set()
    for path in (run_dir / "trained").glob("rank=*.jsonl"):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if line["step"] <= last.get(line["incarnation"], line["step"]):
                account.add((line["step"], tuple(line["group"]), line["hash"]))
    return account
