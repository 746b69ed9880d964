"""A folder of files on any file system that pyarrow knows: where checkpoints are kept.

Owns how a file comes to be there whole and on disk, and how it is read back. What the files mean,
and which of them make a checkpoint, is others'.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.fs as fs

from manta.actors.file_on_disk import sha256_of, sync
from manta.actors.transports.disk import open_folder

_BLOCK = 8 << 20
"""Bytes that are read, hashed and sent at a time."""

_TRIES, _PAUSE_SECONDS = 3, 1.0
"""How often a file is sent elsewhere before it cannot be written, and how long, times the number of
the try, until the next one. What pyarrow's own clients try again is beside that."""

_UNFINISHED = ".unfinished-"
"""How the folder begins in which a writer on this machine makes its files."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as its writer knows it; `name` is relative to the folder."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredFolder:
    """`location` is what `at` takes, `files` a pyarrow file system and `path` the folder there."""

    location: str
    files: Any
    path: str

    @staticmethod
    def at(location: str) -> StoredFolder:
        """An absolute path, or a URI that pyarrow understands. Raises ValueError for others."""
        return StoredFolder(location, *open_folder(location))

    @property
    def local(self) -> Path | None:
        """The folder on this machine's file system; None where it is elsewhere."""
        return Path(self.path) if self.files.type_name == "local" else None

    def __str__(self) -> str:
        return self.location

    def under(self, name: str) -> StoredFolder:
        """The folder `name` in this one."""
        address, mark, query = self.location.partition("?")
        location = f"{address.rstrip('/')}/{name}{mark}{query}"
        return StoredFolder(location, self.files, f"{self.path}/{name}")

    def create(self) -> None:
        self.files.create_dir(self.path, recursive=True)

    def remove(self) -> None:
        """Deletes the folder with all that is in it, if it is there."""
        if self.files.get_file_info(self.path).type != fs.FileType.NotFound:
            self.files.delete_dir(self.path)

    def remove_file(self, name: str) -> None:
        """Deletes a file, if it is there."""
        if self.size(name) is not None:
            self.files.delete_file(f"{self.path}/{name}")

    def names(self) -> list[str]:
        """The files below, however deep, by name relative to the folder."""
        return [
            info.path.removeprefix(f"{self.path}/")
            for info in self._listed(recursive=True)
            if info.type == fs.FileType.File
        ]

    def folders(self) -> list[str]:
        """The names of the folders directly in this one."""
        listed = self._listed(recursive=False)
        return [info.base_name for info in listed if info.type == fs.FileType.Directory]

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""
        info = self.files.get_file_info(f"{self.path}/{name}")
        return None if info.type != fs.FileType.File else int(info.size)

    def read(self, name: str) -> bytes:
        """Raises OSError where it cannot be read."""
        with self.files.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def sha256(self, name: str) -> str:
        """Raises OSError where the file cannot be read."""
        digest = hashlib.sha256()
        with self.files.open_input_stream(f"{self.path}/{name}") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def write(self, name: str, text: str) -> WrittenFile:
        """A small file. Raises OSError where it cannot be written."""
        data = text.encode()
        written = self._tried(name, lambda: BytesIO(data))
        if self.local is not None:
            sync(self.local / name)
        return written

    def fill(self, write: Callable[[Path], None]) -> tuple[WrittenFile, ...]:
        """Has `write` make files in an empty folder of this machine and brings them here; what
        others bring meanwhile stays. All are on disk, and under their names, when it returns.

        Raises OSError where they cannot be written; what there is of them is without meaning then.
        """
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=self.local) as name:
            write(Path(name))
            made = [self._bring(path) for path in sorted(Path(name).iterdir())]
        if self.local is not None:
            sync(self.local)
        return tuple(made)

    def remove_unfinished(self) -> None:
        """Deletes what writers that were killed have left. Only while nobody fills the folder."""
        if self.local is not None:
            for name in self.folders():
                if name.startswith(_UNFINISHED):
                    self.under(name).remove()

    def rename(self, other: StoredFolder) -> None:
        """On this machine's file system only: this folder, which is there, becomes `other`."""
        assert self.local is not None and other.local is not None
        for folder in (*(path for path in self.local.rglob("*") if path.is_dir()), self.local):
            sync(folder)
        self.local.rename(other.local)
        sync(other.local.parent)

    @contextmanager
    def here(self) -> Iterator[Path]:
        """The folder on this machine: itself, or a copy for the while."""
        if self.local is not None:
            yield self.local
            return
        with tempfile.TemporaryDirectory(prefix="manta-") as copy:
            for name in self.names():
                target = Path(copy) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with (
                    self.files.open_input_stream(f"{self.path}/{name}") as source,
                    target.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file, _BLOCK)
            yield Path(copy)

    def _bring(self, source: Path) -> WrittenFile:
        if self.local is not None:
            sync(source)
            written = WrittenFile(source.name, source.stat().st_size, sha256_of(source))
            source.replace(self.local / source.name)
            return written
        return self._tried(source.name, lambda: source.open("rb"))

    def _tried(self, name: str, opened: Callable[[], BinaryIO]) -> WrittenFile:
        """Writes what `opened` gives; elsewhere again from its start where that breaks off. Raises
        OSError."""
        for number in range(1, _TRIES + 1):
            try:
                with opened() as source:
                    return self._sent(name, source)
            except OSError:
                if self.local is not None or number == _TRIES:
                    raise
                time.sleep(_PAUSE_SECONDS * number)
        raise AssertionError

    def _sent(self, name: str, source: BinaryIO) -> WrittenFile:
        digest, num_bytes = hashlib.sha256(), 0
        with self.files.open_output_stream(f"{self.path}/{name}") as stream:
            while block := source.read(_BLOCK):
                digest.update(block)
                stream.write(block)
                num_bytes += len(block)
        return WrittenFile(name, num_bytes, digest.hexdigest())

    def _listed(self, recursive: bool) -> list[Any]:
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        return sorted(self.files.get_file_info(selector), key=lambda info: str(info.path))
