from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from manta.orchestrator.phases import PhaseClock


def events(path: Path) -> list[dict[str, Any]]:
    """As the viewers read it: an array whose end may be missing."""
    text = path.read_text().rstrip().rstrip(",")
    return list(json.loads(text + "]"))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_and_totals(tmp_path: Path) -> None:
    hands = Clock()
    clock = PhaseClock(tmp_path / "timeline.json", hands)
    with clock.phase("learn"):
        hands.now += 2.0
    with clock.phase("learn"), clock.phase("publish"):
        hands.now += 0.5
    assert clock.take_step() == {"learn": 2.5, "publish": 0.5}
    assert clock.take_step() == {}
    with clock.phase("learn"):
        hands.now += 1.0
    assert clock.totals() == {"learn": 3.5, "publish": 0.5}
    durations = [e["dur"] for e in events(tmp_path / "timeline.json") if e["ph"] == "X"]
    assert durations == [2_000_000, 500_000, 500_000, 1_000_000]


def test_processor_time_is_this_process_s_since_the_clock_was_made(tmp_path: Path) -> None:
    before = time.process_time()
    clock = PhaseClock(tmp_path / "timeline.json")
    assert 0 <= clock.cpu_seconds() <= time.process_time() - before


def test_a_phase_that_raises_is_timed(tmp_path: Path) -> None:
    clock = PhaseClock(tmp_path / "timeline.json")
    with pytest.raises(RuntimeError), clock.phase("learn"):
        raise RuntimeError("rank died")
    assert set(clock.take_step()) == {"learn"}
    with clock.phase("learn"):
        assert clock.take_step() == {}
    rows = {e["tid"] for e in events(tmp_path / "timeline.json") if e["ph"] == "X"}
    assert len(rows) == 1


async def test_overlapping_phases_of_one_name_get_rows_of_their_own(tmp_path: Path) -> None:
    clock = PhaseClock(tmp_path / "timeline.json")

    async def wait() -> None:
        with clock.phase("generate", groups=4):
            await asyncio.sleep(0.01)

    await asyncio.gather(wait(), wait())
    spans = [e for e in events(tmp_path / "timeline.json") if e["ph"] == "X"]
    names = {
        e["tid"]: e["args"]["name"]
        for e in events(tmp_path / "timeline.json")
        if e["name"] == "thread_name"
    }
    assert sorted(names[span["tid"]] for span in spans) == ["generate", "generate 2"]
    assert [span["args"] for span in spans] == [{"groups": 4}] * 2


def test_a_killed_timeline_is_readable_and_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    first = PhaseClock(path)
    with first.phase("start_up"):
        time.sleep(0.001)
    first.mark("rank 1 died", rank=1)
    first.levels("queues", {"ready": 3, "in flight": 12})
    first.close()
    with path.open("a") as file:
        file.write('{"ph": "X", "na')
    second = PhaseClock(path)
    with second.phase("start_up"):
        time.sleep(0.001)
    second.close()
    found = events(path)
    spans = [e for e in found if e["ph"] == "X"]
    assert [span["name"] for span in spans] == ["start_up", "start_up"]
    assert spans[1]["ts"] >= spans[0]["ts"] + spans[0]["dur"]
    assert {e["name"]: e["args"] for e in found if e["ph"] in "iC"} == {
        "rank 1 died": {"rank": 1},
        "queues": {"ready": 3, "in flight": 12},
    }
