"""The bookkeeping of the driver's benchmark; what it measures is its own business."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from benchmarks import driver_run
from benchmarks.driver import BATCHES, CLAIMED, FLOOR, MANTA, VERL, figures, step_ends
from benchmarks.received_bytes import Count, by_step, read_counts, tcp_bytes_received
from benchmarks.sized_batches import BYTES_PER_TOKEN, PROMPT, SAMPLES, Batch
from manta.orchestrator import run_file
from manta.orchestrator.metrics import MetricsLine


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch.name)
def test_a_batch_has_the_bytes_that_it_is_named_after(batch: Batch) -> None:
    assert batch.num_bytes == pytest.approx(batch.mib * 2**20, rel=0.02)


def test_a_batch_that_is_too_small_for_its_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="need more bytes"):
        _ = Batch(128, 0.01).tokens


def test_the_run_file_loads_and_has_a_stage_for_every_batch(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    driver_run.write_run_file(path, BATCHES, steps=3)
    loaded = run_file.load(path, [])
    assert [stage.prompts_per_step for stage in loaded.stages] == [b.groups for b in BATCHES]
    assert {stage.steps for stage in loaded.stages} == {3 + driver_run.WARM_UP}
    assert (loaded.learner.workers, loaded.rollout.workers) == (4, 4)


def lines(batch: Batch, tokens: int, seconds: list[float]) -> list[MetricsLine]:
    values = {"tokens/total": float(tokens)}
    return [
        MetricsLine(driver_run.stage_name(batch), i, i, {**values, "time/driver_cpu": cpu})
        for i, cpu in enumerate(seconds)
    ]


def test_steps_that_warm_up_do_not_count_and_sizes_are_checked() -> None:
    batch = Batch(32, 0.4)
    tokens = batch.num_bytes // BYTES_PER_TOKEN
    assert tokens == 32 * SAMPLES * (batch.tokens + len(PROMPT))
    found = driver_run.measured(lines(batch, tokens, [9.0, 9.0, 0.04, 0.05]), [batch], 2)
    assert found == {batch: [40.0, 50.0]}
    with pytest.raises(RuntimeError, match="not of"):
        driver_run.measured(lines(batch, tokens - 1, [9.0, 9.0, 0.04, 0.05]), [batch], 2)
    with pytest.raises(RuntimeError, match="1 steps"):
        driver_run.measured(lines(batch, tokens, [9.0, 9.0, 0.04]), [batch], 2)


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match="code 3"):
        driver_run.finish(["sh", "-c", "exit 3"], {})


def test_bytes_belong_to_the_step_in_which_they_came(tmp_path: Path) -> None:
    path = tmp_path / "tally"
    path.write_text("1.0 10 100\n2.0 20 150\n2.5 50 400\n9.0 90 900\n", encoding="utf-8")
    counts = read_counts(path)
    assert counts[0] == Count(1.0, 10, 100)
    assert by_step(counts, [0.0, 2.0, 3.0, 4.0]) == [(20, 150), (30, 250), (0, 0)]


def test_what_tcp_connections_receive_is_counted_and_other_sockets_are_not() -> None:
    ours, theirs = socket.socketpair()
    server = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(server.getsockname())
    receiver, _ = server.accept()
    with ours, theirs, server, sender, receiver:
        before = tcp_bytes_received()
        sender.sendall(b"x" * 12345)
        ours.sendall(b"x" * 999)
        receiver.recv(12345, socket.MSG_WAITALL)
        theirs.recv(999, socket.MSG_WAITALL)
        assert tcp_bytes_received() - before == 12345


def test_a_step_ends_with_its_publish(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    events = [
        {"name": "thread_name", "ph": "M", "ts": 1},
        {"name": "learn", "ph": "X", "ts": 2_000_000, "dur": 10},
        {"name": "publish", "ph": "X", "ts": 3_000_000, "dur": 500_000},
    ]
    path.write_text("[\n" + "".join(f"{json.dumps(e)},\n" for e in events), encoding="utf-8")
    assert step_ends(path) == [3.5]


def test_only_the_claimed_batch_is_held_to_the_bar_and_ratios_are_over_manta() -> None:
    ours = {batch: [50.0, 61.0, 55.0] for batch in BATCHES}
    found = {
        MANTA: ours,
        FLOOR: {batch: [22.0] * 3 for batch in BATCHES},
        VERL: {batch: [550.0] * 3 for batch in BATCHES},
    }
    seen = {batch: [(1024, 2048), (3072, 4096)] for batch in BATCHES}
    by_name = {figure.name: figure for figure in figures(found, seen)}
    held = [f.name for f in by_name.values() if f.bar is not None and f.unit == "ms/step"]
    assert held == [f"{CLAIMED.name}: {MANTA}"]
    assert by_name[f"{CLAIMED.name}: {MANTA}"].holds() is True
    assert by_name[f"{CLAIMED.name}: {VERL} / {MANTA}"].value == 10.0
    assert by_name[f"128 groups, 104 MiB: {MANTA}, of each group"].value == 55.0 / 128
    assert by_name[f"{CLAIMED.name}: handed to the driver's Python"].value == 2.0
    assert by_name[f"{CLAIMED.name}: received, of the batch"].holds() is True
