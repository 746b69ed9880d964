"""When the status file is written, and what a disk that refuses it does to a run: nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from manta.orchestrator import status
from manta.orchestrator.display import DisplayState
from manta.orchestrator.status import RayStatus
from manta.orchestrator.status_writer import StatusWriter
from manta.orchestrator.wait import Waits


class Case:
    def __init__(self, path: Path) -> None:
        self.step, self.path = 0, path
        self.waits, self.told = Waits(), list[str]()
        ray = RayStatus("address", "session", "")
        self.writer = StatusWriter(
            path, "demo", self.moment, self.waits, ray, lambda: 3, self.told.append
        )

    def moment(self) -> DisplayState:
        return DisplayState("rl", self.step, 9, self.step, 1.5)

    async def until(self, step: int) -> None:
        async with asyncio.timeout(5):
            while not self.path.exists() or status.read(self.path).step != step:
                await asyncio.sleep(0.01)


async def test_a_step_is_written_before_its_turn_and_waits_with_it(tmp_path: Path) -> None:
    case = Case(tmp_path / "status.json")
    waiting = asyncio.create_task(case.waits.wait("the moon", asyncio.Event().wait(), 60))
    writing = asyncio.create_task(case.writer.run())
    await case.until(0)
    case.step = 1
    await asyncio.wait_for(case.until(1), 1.5)
    found = status.read(case.path)
    assert [wait.name for wait in found.waits] == ["the moon"]
    assert (found.incarnation, found.state, found.seconds) == (3, "starting", 1.5)
    writing.cancel()
    waiting.cancel()
    case.writer.end("failed", "it broke")
    assert (status.read(case.path).state, status.read(case.path).error) == ("failed", "it broke")
    assert list(tmp_path.iterdir()) == [case.path]


async def test_what_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    case = Case(tmp_path / "absent" / "status.json")
    case.writer.write()
    case.writer.write()
    assert len(case.told) == 1
    assert case.told[0].startswith("status.json could not be written: ")
