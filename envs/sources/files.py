"""Tasks from JSON Lines and Parquet files, on this machine or in object storage.

Owns finding, opening and numbering rows. Parquet is read by `pyarrow.dataset`. JSON Lines are
split here and parsed a row at a time: Arrow's reader infers types from the first block, which
turns texts that look like dates into dates and loses fields that first appear later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs

from manta.envs.records import Json, Task
from manta.envs.sources.rows import Row, ToTask

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".zst")


class Rows(Protocol):
    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...


class FileSource:
    """Rows of one file, or of all files of one format below a folder in the order of their paths.

    `path` is local or a URI that `pyarrow.fs` knows (`s3://`, `gs://`, `file://`). JSON Lines may
    be compressed (`.gz`, `.bz2`, `.zst`). Rows are read at the first use and kept in memory.
    Every error is a ValueError that names the path: no such path, no rows, an unknown or mixed
    format, a row that is no JSON object; `to_task` adds the missing field.
    """

    def __init__(self, path: str, to_task: ToTask) -> None:
        self.path = path
        self._to_task = to_task

    def __len__(self) -> int:
        return len(self._rows)

    def task(self, index: int) -> Task:
        return self._to_task(self.row(index))

    def row(self, index: int) -> Row:
        """IndexError outside of 0..len-1."""
        return self._rows.row(range(len(self))[index])

    @cached_property
    def _rows(self) -> Rows:
        system, files = _find(self.path)
        formats = {_format(file) for file in files}
        if len(formats) > 1 or None in formats:
            raise ValueError(
                f"data {self.path}: expected files of one format ({', '.join(FORMATS)}), found "
                f"{sorted({Path(file).name for file in files})[:5]}"
            )
        rows: Rows
        if formats == {"jsonl"}:
            rows = JsonLines(system, files)
        else:
            rows = Parquet(system, files, self.path)
        if len(rows) == 0:
            raise ValueError(f"data {self.path}: there are no rows in it")
        return rows


class JsonLines:
    """Lines as bytes; a row is parsed when it is asked for."""

    def __init__(self, system: FileSystem, files: Sequence[str]) -> None:
        self._lines: list[tuple[str, int, bytes]] = []
        for file in files:
            with system.open_input_stream(file) as stream:
                lines = bytes(stream.read()).split(b"\n")
            self._lines += [
                (file, number, line) for number, line in enumerate(lines, 1) if line.strip()
            ]

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> Row:
        file, number, line = self._lines[index]
        where = f"row {index} of {file} (line {number})"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{where} is no JSON object: {line[:60]!r}")
        return Row(index, where, values)


class Parquet:
    """The files' columns in memory, as Arrow holds them."""

    def __init__(self, system: FileSystem, files: Sequence[str], path: str) -> None:
        self._path = path
        try:
            data = pyarrow.dataset.dataset(list(files), filesystem=system, format="parquet")
            self._table = data.to_table()
        except pa.ArrowInvalid as error:
            raise ValueError(f"data {path}: not readable as Parquet: {error}") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> Row:
        values: dict[str, Json] = self._table.slice(index, 1).to_pylist()[0]
        return Row(index, f"row {index} of {self._path}", values)


def _find(path: str) -> tuple[FileSystem, list[str]]:
    try:
        if "://" in path:
            system, place = pyarrow.fs.FileSystem.from_uri(path)
        else:
            system, place = pyarrow.fs.LocalFileSystem(), str(Path(path).expanduser().absolute())
        [info] = system.get_file_info([place])
    except pa.ArrowInvalid as error:
        raise ValueError(f"data {path}: {error}") from error
    if info.type == pyarrow.fs.FileType.NotFound:
        raise ValueError(f"data {path}: there is no such file or folder")
    if info.is_file:
        return system, [place]
    below = system.get_file_info(pyarrow.fs.FileSelector(place, recursive=True))
    files = sorted(
        each.path for each in below if each.is_file and not each.base_name.startswith((".", "_"))
    )
    if not files:
        raise ValueError(f"data {path}: there are no files in the folder")
    return system, files


def _format(file: str) -> str | None:
    name = Path(file)
    return FORMATS.get((Path(name.stem) if name.suffix in COMPRESSED else name).suffix)
