"""Storage that is not this machine's file system, and breaks when it is told to."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import pyarrow as pa
import pyarrow.fs as fs

from manta.actors.stored_folder import StoredFolder

Request: TypeAlias = Literal["upload", "read", "removal", "look"]


class FragileFiles(fs.FileSystemHandler):  # type: ignore[misc]
    """Files below `root`. `breaks` says how many of the next requests of a kind do, of paths that
    end in `ending`: an upload breaks off in its middle and leaves what came so far, all others do
    nothing. `sent` has the path of every upload, in order."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._local = fs.LocalFileSystem()
        self.breaks = Counter[Request]()
        self.ending = ""
        self.sent: list[str] = []

    def folder(self, name: str) -> StoredFolder:
        return StoredFolder(f"store://{name}", fs.PyFileSystem(self), name)

    def get_type_name(self) -> str:
        return "fragile"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        self._asked("look", paths[0])
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        self._asked("look", selector.base_dir)
        base = self._root / selector.base_dir
        found = base.rglob("*") if selector.recursive else base.glob("*")
        return [self._info(str(path.relative_to(self._root))) for path in found]

    def create_dir(self, path: str, recursive: bool) -> None:
        self._local.create_dir(self._there(path), recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._asked("removal", path)
        self._local.delete_dir(self._there(path))

    def delete_file(self, path: str) -> None:
        self._asked("removal", path)
        self._local.delete_file(self._there(path))

    def open_input_stream(self, path: str) -> Any:
        self._asked("read", path)
        return self._local.open_input_stream(self._there(path))

    def open_input_file(self, path: str) -> Any:
        self._asked("read", path)
        return self._local.open_input_file(self._there(path))

    def open_output_stream(self, path: str, metadata: object) -> Any:
        self.sent.append(path)
        file = (self._root / path).open("wb")
        breaks = self._breaks("upload", path)
        return pa.PythonFile(_BreakingOff(file) if breaks else file, mode="w")

    def open_append_stream(self, path: str, metadata: object) -> Any:
        return self._local.open_append_stream(self._there(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self._local.delete_dir_contents(self._there(path), missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self._local.delete_dir_contents(str(self._root))

    def move(self, source: str, target: str) -> None:
        self._local.move(self._there(source), self._there(target))

    def copy_file(self, source: str, target: str) -> None:
        self._local.copy_file(self._there(source), self._there(target))

    def _there(self, path: str) -> str:
        return str(self._root / path)

    def _asked(self, kind: Request, path: str) -> None:
        if self._breaks(kind, path):
            raise OSError("no route to host")

    def _breaks(self, kind: Request, path: str) -> bool:
        breaks = self.breaks[kind] > 0 and path.endswith(self.ending)
        self.breaks[kind] -= breaks
        return breaks

    def _info(self, path: str) -> Any:
        there = self._root / path
        if there.is_dir():
            return fs.FileInfo(path, fs.FileType.Directory)
        if there.is_file():
            return fs.FileInfo(path, fs.FileType.File, size=there.stat().st_size)
        return fs.FileInfo(path, fs.FileType.NotFound)


class HangingFiles(FragileFiles):
    """Requests of the kind `hangs_at` have no answer before `answers` is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hangs_at: Request | None = None
        self.answers = threading.Event()

    def _breaks(self, kind: Request, path: str) -> bool:
        if kind == self.hangs_at:
            self.answers.wait(60)
        return super()._breaks(kind, path)


class _BreakingOff:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> int:
        self._file.write(bytes(data)[: len(data) // 2])
        raise OSError("connection reset by peer")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
