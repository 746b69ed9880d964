"""What a run directory holds, in one place: paths, creation, atomic files, and the lock.

Owns names and exclusivity. What the files say is their writers' business. The directory lies on a
file system that the driver can append to; written trajectories and checkpoints may also go
elsewhere by URI.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from manta.actors.file_on_disk import sync
from manta.actors.stored_folder import StoredFolder
from manta.orchestrator.config import RunFile
from manta.orchestrator.file_trouble import file_trouble, told_of


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths below `root`, absolute or relative as `root` is."""

    root: Path

    @staticmethod
    def of(run_file: RunFile) -> RunDirectory:
        return RunDirectory(Path(run_file.run.dir).absolute() / run_file.run.name)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def histograms(self) -> Path:
        return self.root / "histograms.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def timeline(self) -> Path:
        return self.root / "timeline.json"

    @property
    def picture(self) -> Path:
        return self.root / "learning_curve.png"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def checkpoint_location(self) -> Path:
        """Where the run keeps its checkpoints, if that is elsewhere: one line."""
        return self.checkpoints / "location"

    def checkpoints_at(self) -> StoredFolder:
        """The folder of the run's checkpoints. Raises ValueError where it cannot be opened."""
        if self.checkpoint_location.exists():
            with told_of("where the run keeps its checkpoints is not known"):
                text = self.checkpoint_location.read_text(encoding="utf-8", errors="replace")
            return StoredFolder.at(text.strip())
        return StoredFolder.at(str(self.checkpoints.absolute()))

    def place_checkpoints(self, path: str | None) -> None:
        """From its first start on, the run keeps its checkpoints below `path`, in a folder that no
        other run has, also where this directory is moved or copied."""
        if path is None or self.checkpoint_location.exists():
            return
        root = path if "://" in path else str(Path(path).absolute())
        folder = StoredFolder.at(root).under(f"{self.root.name}-{secrets.token_hex(4)}")
        atomic_write(self.checkpoint_location, f"{folder.location}\n")

    @property
    def trajectories(self) -> Path:
        return self.root / "trajectories"

    @property
    def wandb(self) -> Path:
        return self.root / "wandb"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def incarnations(self) -> Path:
        return self.root / "incarnations.jsonl"

    @property
    def lock_file(self) -> Path:
        return self.root / "run.lock"

    def step_trajectories(self, step: int) -> Path:
        """The folder of the trajectories that step `step` trained on."""
        return self.trajectories / f"step={step}"

    @property
    def products(self) -> Path:
        return self.root / "products"

    def product(self, stage: str) -> Path:
        """The folder of what `stage` left when it ended."""
        return self.products / stage

    def product_in_progress(self, stage: str) -> Path:
        """Where that is made, under a name that no stage can have."""
        return self.products / f".{stage}"

    def create(self) -> None:
        """Makes the directory and its folders; what is there stays.

        Raises ValueError where a file is in the way, or folders cannot be made there.
        """
        try:
            for folder in (self.root, self.checkpoints, self.trajectories):
                folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f"{error.filename} is a file where the run directory {self.root} needs a folder: "
                "move it away or choose another run.name"
            ) from error
        except OSError as error:
            raise ValueError(
                f"the run directory {self.root} (run.dir, run.name) cannot be made: "
                f"{file_trouble(error) or error}"
            ) from error

    def discard_trajectories_after(self, step: int) -> None:
        """Deletes what steps past `step` wrote: a resume from `step` leaves that history."""
        for folder in (*self.trajectories.glob("step=*"), *self.root.glob("products/*/step=*")):
            number = folder.name.removeprefix("step=")
            if number.isdecimal() and int(number) > step:
                shutil.rmtree(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the directory for this process; the kernel lets go when the process dies.

        Raises ValueError, naming the other driver's process id and host, where one holds it, or
        where the directory cannot be written.
        """
        with told_of(f"the run directory {self.root} (run.dir, run.name) cannot be written"):
            file = self._held()
        with file:
            yield
            # The file stays: deleting it would let two drivers lock two files of one name.
            file.truncate(0)

    def _held(self) -> TextIO:
        """The lock file, locked, with who holds it."""
        file = self.lock_file.open("a+")
        try:
            self._take(file)
        except BaseException:
            # What could not be written cannot be on the way out either
            with suppress(OSError):
                file.close()
            raise
        return file

    def _take(self, file: TextIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"run directory {self.root} is in use by {_holder(self.lock_file)}: wait for that "
                "run, stop it, or choose another run.name"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()


def atomic_write(path: Path, text: str) -> None:
    """Replaces `path` by `text` so that a reader, or a crash, sees the old or the new, never half.

    Returns once the content and the rename are on disk.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def _holder(lock_file: Path) -> str:
    """Who the lock file says holds it; it is empty for the instant before the holder wrote it."""
    text = lock_file.read_text()
    if not text:
        return "another driver"
    holder = json.loads(text)
    return f"process {holder['pid']} on {holder['host']}"
