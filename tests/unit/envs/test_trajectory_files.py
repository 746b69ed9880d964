from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from manta.envs.records import (
    COMPANION,
    GIVEN,
    Companion,
    GroupId,
    Likeliest,
    Media,
    Message,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Span,
    Task,
    Trajectory,
    Turn,
    VersionSpan,
    WeightVersion,
)
from manta.envs.trajectory_columns import from_table, to_table
from manta.envs.trajectory_files import DumpSource, TrajectoryReader, write_groups

names = st.text(max_size=8)
floats = st.floats(width=32)
doubles = st.floats()
counts = st.integers(0, 2**31 - 1)
numbers_or_text = st.dictionaries(names, doubles | st.text(max_size=8), max_size=3)
media = st.lists(st.builds(Media, names, names, names), max_size=2).map(tuple)
versions = st.builds(WeightVersion, counts, st.integers(0, 9))
payloads = st.dictionaries(
    names,
    arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.int64, np.bool_, np.dtype("<U3")]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    max_size=2,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


def floats32(length: int) -> st.SearchStrategy[Any]:
    return arrays.arrays(np.float32, length, elements=floats)


@st.composite
def trajectories(draw: st.DrawFn, sample: int) -> Trajectory:
    length = draw(st.integers(0, 6))
    return Trajectory(
        task_id=draw(names),
        sample=sample,
        model=draw(st.sampled_from(["policy", GIVEN])),
        token_ids=draw(arrays.arrays(np.int32, length)),
        loss_mask=draw(arrays.arrays(np.bool_, length)),
        logprobs=draw(st.none() | floats32(length)),
        weight_versions=tuple(draw(st.lists(st.builds(VersionSpan, counts, versions), max_size=2))),
        turns=tuple(draw(st.lists(st.builds(Turn, names, counts, counts), max_size=3))),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        artifact=draw(st.text(max_size=20)),
        parent=draw(st.none() | st.tuples(names, counts)),
        payload=draw(payloads),
        media=draw(media),
        env_info=draw(numbers_or_text),
    )


@st.composite
def scores(draw: st.DrawFn) -> Score:
    return Score(
        value=draw(doubles),
        components=draw(st.dictionaries(names, doubles, max_size=3)),
        spans=tuple(draw(st.lists(st.builds(Span, names, counts, counts, doubles), max_size=2))),
        columns=draw(st.dictionaries(names, floats32(3), max_size=2)),
        note=draw(st.text(max_size=5)),
    )


@st.composite
def likeliest(draw: st.DrawFn, rows: Sequence[Trajectory]) -> tuple[Likeliest, ...]:
    """Of one or two tokens; of none where no row has a trained one, which could not tell."""
    num_tokens = [int(row.loss_mask.sum()) for row in rows]
    k = draw(st.integers(1, 2)) if any(num_tokens) else 0
    return tuple(
        Likeliest(
            np.arange(num * k, dtype=np.int32).reshape(num, k),
            draw(floats32(num * (k + 1))).reshape(num, k + 1),
            draw(floats32(num)),
        )
        for num in num_tokens
    )


@st.composite
def scored_groups(draw: st.DrawFn) -> ScoredGroup:
    size = draw(st.integers(1, 3))
    rows = tuple(draw(trajectories(sample)) for sample in range(size))
    message = st.builds(Message, names, names)
    return ScoredGroup(
        id=GroupId(draw(counts), draw(counts), draw(counts)),
        task=Task(
            id=draw(names),
            prompt=draw(names | st.lists(message, max_size=3).map(tuple)),
            reference=draw(json_values),
            env=draw(names),
            tags=tuple(draw(st.lists(names, max_size=2))),
            facts=draw(numbers_or_text),
            media=draw(media),
        ),
        trajectories=rows,
        scores=tuple(draw(scores()) for _ in rows),
        reference=draw(
            st.none()
            | st.builds(
                ReferenceStatistics,
                names,
                st.tuples(*(floats32(len(row.token_ids)) for row in rows)),
                st.just(()) | likeliest(rows),
            )
        ),
        reward_versions=draw(st.dictionaries(names, names, max_size=2)),
        timings=draw(st.dictionaries(names, doubles, max_size=2)),
        cut_off=tuple(draw(st.lists(counts, max_size=2))),
        companion=draw(st.none() | companions()),
    )


@st.composite
def companions(draw: st.DrawFn) -> Companion:
    made = draw(trajectories(COMPANION))
    reference = draw(st.none() | floats32(len(made.token_ids)))
    return Companion(made, draw(scores()), reference)


def plain(value: Any) -> Any:
    """`value` as nested tuples that compare by content: dtype, shape, bytes, and NaN as NaN."""
    if dataclasses.is_dataclass(value):
        return tuple((f.name, plain(getattr(value, f.name))) for f in dataclasses.fields(value))
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return tuple((key, plain(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(plain(item) for item in value)
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def group(position: int, samples: int = 2, length: int = 5, **task: Any) -> ScoredGroup:
    rng = np.random.default_rng(position)

    def trajectory(sample: int) -> Trajectory:
        return Trajectory(
            task_id=f"add/{position}",
            sample=sample,
            model="policy",
            token_ids=rng.integers(0, 100, length).astype(np.int32),
            loss_mask=np.arange(length) > 1,
            logprobs=rng.normal(size=length).astype(np.float32),
            weight_versions=(VersionSpan(0, WeightVersion(3, 0)),),
            turns=(Turn("user", 0, 2), Turn("assistant", 2, length, "four")),
            finish_reason="stop",
            artifact="4",
        )

    return ScoredGroup(
        id=GroupId(0, position, 0),
        task=Task(f"add/{position}", "2+2=?", "4", "add", **task),
        trajectories=tuple(trajectory(sample) for sample in range(samples)),
        scores=tuple(Score(float(sample), {"correct": 1.0}) for sample in range(samples)),
        reference=None,
        reward_versions={"correct": "1"},
        timings={"generate": 0.5},
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(scored_groups(), min_size=1, max_size=3, unique_by=lambda g: g.id))
def test_every_field_comes_back(
    tmp_path_factory: pytest.TempPathFactory, groups: list[ScoredGroup]
) -> None:
    folder = tmp_path_factory.mktemp("trajectories")
    write_groups(folder / "rank=0.parquet", groups, step=4)
    reader = TrajectoryReader(folder)
    assert len(reader) == len(groups)
    for index, written in enumerate(groups):
        read = reader.group(index)
        assert plain(read) == plain(written)
        assert read.content_hash() == written.content_hash() == reader.entries[index].content_hash
        assert plain(reader.task(index)) == plain(written.task)


def test_groups_of_many_row_groups_and_files_are_found_in_step_order(tmp_path: Path) -> None:
    long = [group(position, samples=4, length=20_000) for position in range(7)]
    write_groups(tmp_path / "step=10" / "rank=0.parquet", [group(20)], step=10)
    write_groups(tmp_path / "step=9" / "rank=0.parquet", long, step=9)
    reader = TrajectoryReader(tmp_path)
    assert pq.read_metadata(tmp_path / "step=9" / "rank=0.parquet").num_row_groups > 3
    assert [entry.step for entry in reader.entries] == [9] * 7 + [10]
    for index in (7, 0, 6, 3):
        assert plain(reader.group(index)) == plain([*long, group(20)][index])


def test_a_replayed_step_counts_once_and_a_uri_names_the_same_folder(tmp_path: Path) -> None:
    write_groups(f"file://{tmp_path}/step=1/rank=0.parquet", [group(0), group(1)], step=1)
    write_groups(tmp_path / "step=1" / "rank=1.parquet", [group(1)], step=1)
    write_groups(tmp_path / "step=2" / "rank=0.parquet", [group(1)], step=2)
    entries = TrajectoryReader(f"file://{tmp_path}").entries
    assert [(e.step, e.id.position) for e in entries] == [(1, 0), (1, 1), (2, 1)]


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rank=0.parquet"
    write_groups(path, [group(0), group(1)], step=1)
    write_groups(path, [group(2)], step=1)
    assert TrajectoryReader(tmp_path).group(0).task.id == "add/2"
    assert list(tmp_path.iterdir()) == [path]


def test_a_group_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rank=0.parquet"
    write_groups(path, [group(0)], step=1)
    good = group(1)
    wrong_dtype = dataclasses.replace(
        good.trajectories[0], token_ids=good.trajectories[0].token_ids.astype(np.int64)
    )
    objects = dataclasses.replace(
        good.trajectories[0], payload={"state": np.array([object()], dtype=object)}
    )
    for trajectory, message in ((wrong_dtype, "token_ids must be int32"), (objects, "'state'")):
        bad = dataclasses.replace(good, trajectories=(trajectory, good.trajectories[1]))
        with pytest.raises(ValueError, match=message):
            write_groups(path, [group(5), bad], step=1)
    with pytest.raises(ValueError, match="no trajectories"):
        write_groups(path, [dataclasses.replace(good, trajectories=(), scores=())], step=1)
    assert TrajectoryReader(tmp_path).group(0).task.id == "add/0"
    assert list(tmp_path.iterdir()) == [path]


def test_a_step_without_groups_is_a_file_without_rows(tmp_path: Path) -> None:
    write_groups(tmp_path / "rank=0.parquet", [], step=1)
    assert len(TrajectoryReader(tmp_path)) == 0


def test_missing_empty_damaged_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder of trajectories at .*absent"):
        TrajectoryReader(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no trajectories"):
        TrajectoryReader(tmp_path)
    path = tmp_path / "rank=0.parquet"
    write_groups(path, [group(0)], step=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"rank=0\.parquet is no readable Parquet file"):
        TrajectoryReader(tmp_path)
    path.write_bytes(whole)
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata({"manta.trajectories.version": "99"}), path)
    with pytest.raises(ValueError, match=r"rank=0\.parquet has trajectory format version 99"):
        TrajectoryReader(tmp_path)


def test_damaged_data_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rank=0.parquet"
    write_groups(path, [group(0, length=2000)], step=1)
    row_group = pq.read_metadata(path).row_group(0)
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    column = next(c for c in columns if c.path_in_schema.startswith("token_ids"))
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle] ^= 0xFF
    path.write_bytes(data)
    reader = TrajectoryReader(tmp_path)
    with pytest.raises(ValueError, match=r"rank=0\.parquet is damaged"):
        reader.group(0)


def test_a_dump_gives_groups_the_ids_of_the_run_that_learns(tmp_path: Path) -> None:
    write_groups(tmp_path / "rank=0.parquet", [group(0), group(1)], step=1)
    source = DumpSource(tmp_path)
    assert len(source) == 2
    assert source.task(1).id == "add/1"
    taken = source.group(1, GroupId(2, 7, 1))
    assert taken.id == GroupId(2, 7, 1)
    assert taken.content_hash() == group(1).content_hash()


def test_any_parquet_reader_can_use_the_columns(tmp_path: Path) -> None:
    write_groups(tmp_path / "rank=0.parquet", [group(0, tags=("easy",))], step=3)
    row = pq.read_table(tmp_path / "rank=0.parquet").to_pylist()[1]
    assert (row["step"], row["task"], row["prompt"], row["reward"]) == (3, "add/0", '"2+2=?"', 1.0)
    assert row["components"] == [("correct", 1.0)]
    assert row["tags"] == ["easy"]
    assert row["token_ids"] == group(0).trajectories[1].token_ids.tolist()


def test_files_from_before_likely_tokens_are_read(tmp_path: Path) -> None:
    """They have no columns of them."""
    reference = ReferenceStatistics("r#1", tuple(np.zeros(6, np.float32) for _ in range(2)))
    written = dataclasses.replace(group(0, samples=2, length=6), reference=reference)
    table = to_table([written], step=1)
    newer = [name for name in table.column_names if name.startswith("reference_likeliest")]
    assert len(newer) == 3
    assert plain(from_table(table.drop_columns(newer))) == plain(written)
