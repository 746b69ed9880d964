"""One rank's part in checkpoints: what it has to write goes to disk while it trains on.

Owns the thread, and that there is one write at a time. What is written is the backend's, whether it
makes a checkpoint the driver's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from manta.actors.step_work import Saved
from manta.actors.stored_folder import StoredFolder


class CheckpointWriter:
    def __init__(self, tell: Callable[[int, Saved], None]) -> None:
        """`tell` is called with a step and what became of its files, on the writer's thread."""
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def start(self, step: int, folder: str, snapshot: Callable[[], Callable[[Path], None]]) -> None:
        """Takes a `snapshot`, and begins to bring what that writes to `folder`, a path or URI.
        Waits first for the write before it to end, so that there are never two snapshots."""
        self.wait()
        self._writing = self._thread.submit(self._write, step, folder, snapshot())

    def now(self, step: int, folder: str, write: Callable[[Path], None]) -> None:
        """As `start`, but `write` runs here, without a snapshot, and is done when this returns."""
        self.wait()
        self._write(step, folder, write)

    def nothing(self, step: int) -> None:
        """This rank has no part in the checkpoint of `step`."""
        self._tell(step, Saved(()))

    def wait(self) -> None:
        """Until nothing is being written. Raises what `write` raised, other than an OSError: that
        is told."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, folder: str, write: Callable[[Path], None]) -> None:
        saved = Saved((), "a learner rank could not write its part: its log has the cause")
        try:
            saved = Saved(StoredFolder.at(folder).fill(write))
        except OSError as error:  # a full disk, or one that is gone
            saved = Saved((), str(error))
        finally:
            self._tell(step, saved)
