"""Checkpoints beside the steps: one at a time, committed when all is there, told when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from manta.actors.step_work import Saved
from manta.actors.stored_folder import StoredFolder, WrittenFile
from manta.orchestrator.checkpoint import CheckpointFailed, Checkpoints
from manta.orchestrator.commits import Commits
from manta.orchestrator.run_state import RunState
from manta.orchestrator.storage import Storage, StorageHangs
from manta.orchestrator.wait import Waits
from tests.fragile_files import FragileFiles, HangingFiles


def state(step: int) -> RunState:
    return RunState(step, "rl", step, False, None, 0, 0, 0)


class Ranks:
    """The mailbox's side: what two ranks say of a checkpoint when they are told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.words: dict[int, asyncio.Future[tuple[Saved, ...]]] = {}
        self.forgotten: list[int] = []

    async def saved(self, step: int) -> tuple[Saved, ...]:
        return await self._word(step)

    async def forget(self, step: int) -> None:
        self.forgotten.append(step)

    def write(self, step: int, problem: str = "") -> None:
        learner = StoredFolder.at(str(self._folder / f".step={step:06d}" / "learner"))

        def share(folder: Path) -> None:
            (folder / "model-00001-of-00002.safetensors").write_text("weights")

        first = Saved(learner.fill(share))
        second = Saved((), problem) if problem else Saved(())
        self._word(step).set_result((first, second))

    def _word(self, step: int) -> asyncio.Future[tuple[Saved, ...]]:
        return self.words.setdefault(step, asyncio.get_running_loop().create_future())


class Recorder:
    def __init__(self) -> None:
        self.events: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def event(self, name: str, fields: dict[str, int | str]) -> None:
        self.events.append(f"{name} {fields.get('step', fields.get('why'))}")


class Run:
    def __init__(
        self, folder: Path, place: StoredFolder | None = None, deadline_seconds: float = 20.0
    ) -> None:
        self.ranks, self.recorder = Ranks(folder), Recorder()
        self.checkpoints = Checkpoints(place or StoredFolder.at(str(folder)), keep=1)
        self.waits = Waits()
        self.storage = Storage(self.waits, deadline_seconds)
        self.commits = Commits(
            self.checkpoints,
            self.ranks,  # type: ignore[arg-type]
            self.recorder,  # type: ignore[arg-type]
            self.waits,
            self.storage,
            20.0,
        )


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_checkpoint_is_there_once_all_ranks_have_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = await run.commits.begin(4)
    assert folder == str(tmp_path / ".step=000004" / "learner")
    run.commits.start(state(4), has_learner=True)
    await turns()
    assert (run.checkpoints.steps(), run.ranks.forgotten) == ([], [])
    run.ranks.write(4)
    await run.commits.settled()
    assert (run.checkpoints.steps(), run.ranks.forgotten) == ([4], [4])
    assert run.recorder.events == ["checkpoint 4"]


async def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    run = Run(tmp_path)
    await run.commits.begin(4)
    run.commits.start(state(4), has_learner=True)
    beginning = asyncio.create_task(run.commits.begin(6))
    await turns()
    assert not beginning.done()
    assert not (tmp_path / ".step=000006").exists()
    run.ranks.write(4)
    assert await beginning == str(tmp_path / ".step=000006" / "learner")
    assert run.checkpoints.steps() == [4]


async def test_a_rank_s_full_disk_ends_the_run_and_costs_nothing_older(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, problem in ((4, ""), (6, "[Errno 28] No space left on device")):
        await run.commits.begin(step)
        run.commits.start(state(step), has_learner=True)
        run.ranks.write(step, problem)
    with pytest.raises(CheckpointFailed, match=r"step 6 could not .*No space left.* Make room"):
        await run.commits.failed()
    with pytest.raises(CheckpointFailed):
        await run.commits.begin(8)
    await run.commits.close()
    assert run.checkpoints.steps() == [4]
    assert run.ranks.forgotten == [4], "what no checkpoint covers is kept"
    assert not list(tmp_path.glob(".step=*"))


async def test_a_file_that_is_not_as_it_was_written_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    await run.commits.begin(4)
    run.commits.start(state(4), has_learner=True)
    claimed = Saved((WrittenFile("model.safetensors", 7, "hash"),))
    run.ranks.words[4] = asyncio.get_running_loop().create_future()
    run.ranks.words[4].set_result((claimed,))
    with pytest.raises(CheckpointFailed, match=r"does not hold the 7 bytes .* it is not there"):
        await run.commits.settled()
    await run.commits.close()


@pytest.mark.parametrize("request_", ["look", "upload"])
async def test_storage_that_hangs_ends_the_run_by_its_deadline(
    tmp_path: Path, request_: Literal["look", "upload"]
) -> None:
    files = HangingFiles(tmp_path)
    run = Run(tmp_path, files.folder("bucket"), deadline_seconds=0.2)
    await run.commits.begin(4)
    files.hangs_at = request_
    run.commits.start(state(4), has_learner=False)
    failing = asyncio.create_task(run.commits.failed())
    await turns()
    assert [each.name for each in run.waits.current()] == ["storage to commit checkpoint 4"]
    with pytest.raises(StorageHangs, match=r"waited 0\.2 s for storage to commit checkpoint 4"):
        await failing
    with pytest.raises(StorageHangs):
        await run.commits.begin(6)
    await run.commits.close()
    assert run.storage.hangs
    files.answers.set()


async def test_what_is_given_up_is_no_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    await run.commits.begin(4)
    run.commits.start(state(4), has_learner=True)
    await turns()
    await run.commits.close()
    assert run.checkpoints.latest() == (None, [])


async def test_a_stage_without_learner_waits_for_no_rank(tmp_path: Path) -> None:
    run = Run(tmp_path)
    await run.commits.begin(4)
    run.commits.start(state(4), has_learner=False)
    await run.commits.settled()
    assert run.checkpoints.steps() == [4]


async def test_what_the_reference_brings_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    learner = StoredFolder.at(await run.commits.begin(4))
    word: asyncio.Future[tuple[WrittenFile, ...]] = asyncio.get_running_loop().create_future()
    run.commits.start(state(4), True, word)
    run.ranks.write(4)
    await turns()
    assert run.checkpoints.steps() == []

    def write(folder: Path) -> None:
        (folder / "reference.safetensors").write_text("average")

    word.set_result(learner.fill(write))
    await run.commits.settled()
    assert "learner/reference.safetensors" in run.checkpoints.at_step(4).files
    (tmp_path / "step=000004/learner/reference.safetensors").write_text("torn")
    with pytest.raises(ValueError, match=r"reference\.safetensors has 4 bytes, 7 were written"):
        run.checkpoints.at_step(4)


async def test_older_ones_that_cannot_be_removed_are_told_and_end_nothing(tmp_path: Path) -> None:
    files = FragileFiles(tmp_path)
    run = Run(tmp_path, files.folder("bucket"))
    for step in (4, 6):
        await run.commits.begin(step)
        files.breaks["removal"] = step == 6
        run.commits.start(state(step), has_learner=False)
        await run.commits.settled()
    assert [each.partition(" in ")[0] for each in run.recorder.events] == [
        "checkpoint 4",
        "older checkpoints stay checkpoints",
        "checkpoint 6",
    ]
    assert run.checkpoints.steps() == [4, 6]
