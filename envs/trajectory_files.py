"""Written trajectories: Parquet files of scored groups, and random access to a folder of them.

Owns the file format: zstd Parquet, whole groups per row group, and in the footer the format's
version, the step and an index of the groups with their content hashes, so that a reader finds any
group after reading footers only. Columns are `manta.envs.trajectory_columns`'s. Who writes when,
and which folder, is not decided here. A location is a local path or a pyarrow.fs URI.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from manta.envs.records import COMPANION, GroupId, ScoredGroup, Task
from manta.envs.trajectory_columns import SCHEMA, from_table, read_task, to_table

FORMAT_VERSION = 1
_VERSION_KEY = b"manta.trajectories.version"
_INDEX_KEY = b"manta.trajectories.index"
_BYTES_PER_ROW_GROUP = 1 << 20
_CACHED_ROW_GROUPS = 64
"""Epochs ask for groups in another order: what is not kept is read whole again for each of them."""

# High-entropy floats compress best as split byte streams; all other columns repeat themselves.
_FLOATS = ("logprobs", "reference_logprobs", "reference_likeliest_logprobs")
_STREAMS = [f"{name}.list.element" for name in _FLOATS]
_NOT_REPEATING = {*_FLOATS, "reward"}


class GroupEntry(NamedTuple):
    """A written group as the footers describe it. `file` is the path within its file system."""

    step: int
    id: GroupId
    content_hash: str
    rows: int
    file: str
    row_group: int
    start: int


def write_groups(path: str | Path, groups: Sequence[ScoredGroup], step: int) -> None:
    """Writes `groups` to the Parquet file `path`, replacing it atomically.

    A reader or a crash never sees half a file: it is written beside `path` and renamed. Raises
    ValueError where a group cannot be written (see `to_table`).
    """
    system, target = _resolve(path)
    folder, name = os.path.split(target)
    system.create_dir(folder, recursive=True)
    temporary = f"{folder}/.{name}.{secrets.token_hex(4)}.tmp"
    try:
        with system.open_output_stream(temporary) as sink:
            _write(sink, groups, step)
        system.move(temporary, target)
    finally:
        if system.get_file_info(temporary).type != fs.FileType.NotFound:
            system.delete_file(temporary)


class TrajectoryReader:
    """The groups written below a folder, by index: in order of step, file and place in the file.

    Reads footers when made, and one row group (about a megabyte) when a group is asked for. A
    group that a replayed step wrote twice with equal content counts once. Safe to share between
    threads. Raises ValueError, naming the file, for a folder that is missing or holds no
    trajectories and for a file that is damaged or of another format version.
    """

    def __init__(self, folder: str | Path) -> None:
        self._system, self._folder = _resolve(folder)
        self._tables: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        files = _parquet_files(self._system, self._folder)
        with ThreadPoolExecutor(8) as pool:
            footers = list(pool.map(self._read_footer, files))
        found = sorted((e for footer in footers for e in footer), key=lambda entry: entry.step)
        unique = {(entry.step, entry.id, entry.content_hash): entry for entry in reversed(found)}
        self.entries: tuple[GroupEntry, ...] = tuple(reversed(unique.values()))

    def __len__(self) -> int:
        return len(self.entries)

    def group(self, index: int) -> ScoredGroup:
        """The group at `index` in 0..len-1, equal to what was written."""
        return from_table(self._rows(self.entries[index]))

    def task(self, index: int) -> Task:
        """The task of the group at `index`."""
        return read_task(self._rows(self.entries[index]))

    def samples_by_task(self) -> dict[str, list[tuple[int, int]]]:
        """By task id (index of a group, place in it) of every sample, in the groups' order. Reads
        two columns of all that is written."""
        found: dict[str, list[tuple[int, int]]] = {}
        at, columns = None, pa.table({})
        for index, entry in enumerate(self.entries):
            if at != (entry.file, entry.row_group):
                at = (entry.file, entry.row_group)
                columns = self._read_row_group(entry, ["task", "sample"])
            rows = columns.slice(entry.start, entry.rows)
            samples = rows.column("sample").to_pylist()
            own = [(index, place) for place, sample in enumerate(samples) if sample != COMPANION]
            found.setdefault(rows.column("task")[0].as_py(), []).extend(own)
        return found

    def _read_footer(self, path: str) -> list[GroupEntry]:
        try:
            with self._system.open_input_file(path) as file:
                metadata = pq.read_metadata(file).metadata or {}
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no readable Parquet file ({error}): delete it") from error
        version = metadata.get(_VERSION_KEY, b"none").decode()
        if version != str(FORMAT_VERSION):
            raise ValueError(
                f"{path} has trajectory format version {version}, this is version "
                f"{FORMAT_VERSION}: read it with the release that wrote it"
            )
        index = json.loads(metadata[_INDEX_KEY])
        return list(_entries(index, path))

    def _rows(self, entry: GroupEntry) -> pa.Table:
        key = (entry.file, entry.row_group)
        with self._lock:
            table = self._tables.pop(key, None)
            if table is None:
                table = self._read_row_group(entry)
            self._tables[key] = table
            if len(self._tables) > _CACHED_ROW_GROUPS:
                self._tables.popitem(last=False)
        return table.slice(entry.start, entry.rows)

    def _read_row_group(self, entry: GroupEntry, columns: list[str] | None = None) -> pa.Table:
        try:
            with self._system.open_input_file(entry.file) as file:
                reader = pq.ParquetFile(file, page_checksum_verification=True)
                return reader.read_row_group(entry.row_group, columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{entry.file} is damaged or gone ({error})") from error


class DumpSource:
    """Written trajectories as a source to learn from: tasks by index, and their scored groups."""

    def __init__(self, folder: str | Path) -> None:
        self._reader = TrajectoryReader(folder)

    def __len__(self) -> int:
        return len(self._reader)

    def task(self, index: int) -> Task:
        """The task at `index` in 0..len-1, the same at every call."""
        return self._reader.task(index)

    def group(self, index: int, id: GroupId) -> ScoredGroup:
        """The group at `index`, under the id that this run's feed gave it."""
        return dataclasses.replace(self._reader.group(index), id=id)


def _write(sink: pa.NativeFile, groups: Sequence[ScoredGroup], step: int) -> None:
    schema = SCHEMA.with_metadata({_VERSION_KEY: str(FORMAT_VERSION)})
    repeating = [f.name for f in SCHEMA if f.name not in _NOT_REPEATING]
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=repeating,
        use_byte_stream_split=_STREAMS,
        write_statistics=["step", "reward"],
        write_page_checksum=True,
    ) as writer:
        row_groups = []
        for part in _parts(groups):
            writer.write_table(to_table(part, step))
            row_groups.append([[*g.id, len(g.rows), g.content_hash()] for g in part])
        index = {"step": step, "row_groups": row_groups}
        writer.add_key_value_metadata({_INDEX_KEY: json.dumps(index)})


def _parts(groups: Sequence[ScoredGroup]) -> Iterator[list[ScoredGroup]]:
    """Runs of groups of about a megabyte each."""
    part: list[ScoredGroup] = []
    size = 0
    for group in groups:
        part.append(group)
        for trajectory in group.rows:
            size += 13 * len(trajectory.token_ids) + len(trajectory.artifact) + 128
            size += sum(array.nbytes for array in trajectory.payload.values())
        if group.reference is not None:
            size += sum(each.ids.nbytes * 2 for each in group.reference.likeliest)
        if size >= _BYTES_PER_ROW_GROUP:
            yield part
            part, size = [], 0
    if part:
        yield part


def _entries(index: dict[str, object], path: str) -> Iterator[GroupEntry]:
    step, row_groups = index["step"], index["row_groups"]
    assert isinstance(step, int) and isinstance(row_groups, list)
    for number, row_group in enumerate(row_groups):
        start = 0
        for epoch, position, attempt, rows, content_hash in row_group:
            id = GroupId(epoch, position, attempt)
            yield GroupEntry(step, id, content_hash, rows, path, number, start)
            start += rows


def _resolve(location: str | Path) -> tuple[fs.FileSystem, str]:
    if isinstance(location, str) and "://" in location:
        system, path = fs.FileSystem.from_uri(location)
        return system, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(location).absolute())


def _parquet_files(system: fs.FileSystem, folder: str) -> list[str]:
    if system.get_file_info(folder).type != fs.FileType.Directory:
        raise ValueError(f"there is no folder of trajectories at {folder}")
    infos = system.get_file_info(fs.FileSelector(folder, recursive=True))
    files = sorted(
        info.path
        for info in infos
        if info.type == fs.FileType.File and info.path.endswith(".parquet")
    )
    if not files:
        raise ValueError(f"folder {folder} holds no trajectories (*.parquet)")
    return files
