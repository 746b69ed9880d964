"""Which ranks write a checkpoint, by what their backend can do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from manta.actors.backends.protocol import Backend
from manta.actors.checkpoint_writer import CheckpointWriter
from manta.actors.rank import save_part
from manta.actors.step_work import Saved


class Whole:
    """A plug-in as far as a checkpoint asks it: it can only save."""

    def __init__(self) -> None:
        self.saves = 0

    def save(self, folder: Path) -> None:
        self.saves += 1
        (folder / "learner.json").write_text("{}")


class Cut(Whole):
    """One that every rank must call: it would wait for those that do not."""

    def lend_shards(self) -> None:
        raise AssertionError("nobody asked for weights")


class Copied(Whole):
    """One whose state is written beside the steps."""

    def snapshot(self) -> Callable[[Path], None]:
        return self.save


CASES = [(Whole, [True, False]), (Cut, [True, True]), (Copied, [True, True])]


@pytest.mark.parametrize(("kind", "expected"), CASES, ids=[kind.__name__ for kind, _ in CASES])
def test_ranks_that_write(kind: type[Whole], expected: list[bool], tmp_path: Path) -> None:
    for rank, is_writer in enumerate(expected):
        told: list[tuple[int, Saved]] = []
        backend = kind()
        writer = CheckpointWriter(lambda step, saved, told=told: told.append((step, saved)))
        save_part(cast(Backend, backend), writer, rank, 4, str(tmp_path / str(rank)), 0.1)
        writer.wait()
        assert backend.saves == int(is_writer)
        [(step, saved)] = told
        assert (step, saved.problem) == (4, "")
        names = ["kl.json"] * (rank == 0) + ["learner.json"] * is_writer
        assert [file.name for file in saved.files] == names
