"""Scored groups as Arrow columns and back: one row per trajectory, lossless. A group's companion is
its last row, with the sample `COMPANION`.

Owns the schema and both directions of the conversion. Knows nothing of files, folders or row
groups (`manta.envs.trajectory_files`). Fields of the group (task, versions, timings) are repeated
on each of its rows, so that any Parquet reader can use a file without knowing Manta. Token columns
are built from concatenated arrays and offsets: no Python runs per token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manta.envs.number_lists import flat, number_lists, offsets_of, read_lists
from manta.envs.records import (
    COMPANION,
    Companion,
    FinishReason,
    GroupId,
    Json,
    Media,
    Message,
    Score,
    ScoredGroup,
    Span,
    Task,
    Trajectory,
    Turn,
    VersionSpan,
    WeightVersion,
)
from manta.envs.reference_columns import (
    REFERENCE_FIELDS,
    read_beside,
    read_reference,
    reference_arrays,
)

_FLOATS = pa.list_(pa.float32())
_MEDIA = pa.struct({"kind": pa.string(), "content_hash": pa.string(), "reference": pa.string()})
_VERSION = pa.struct({"start": pa.int32(), "step": pa.int64(), "incarnation": pa.int64()})
_PLACE = {"start": pa.int32(), "end": pa.int32()}
_TURN = pa.struct({"role": pa.string(), **_PLACE, "text": pa.string()})
_SPAN = pa.struct({"name": pa.string(), **_PLACE, "value": pa.float64()})
_PARENT = pa.struct({"task_id": pa.string(), "offset": pa.int64()})
_NUMBER_OR_TEXT = pa.struct({"number": pa.float64(), "text": pa.string()})
_ARRAY = pa.struct({"dtype": pa.string(), "shape": pa.list_(pa.int64()), "data": pa.large_binary()})

GROUP_FIELDS = [
    pa.field("group_epoch", pa.int64()),
    pa.field("group_position", pa.int64()),
    pa.field("group_attempt", pa.int64()),
    pa.field("task", pa.string()),
    pa.field("env", pa.string()),
    pa.field("prompt", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("tags", pa.list_(pa.string())),
    pa.field("facts", pa.string()),
    pa.field("task_media", pa.list_(_MEDIA)),
    pa.field("reference_version", pa.string()),
    pa.field("reward_versions", pa.map_(pa.string(), pa.string())),
    pa.field("timings", pa.map_(pa.string(), pa.float64())),
    pa.field("cut_off", pa.list_(pa.int32())),
]
"""Repeated on each row of a group. `prompt` (a string, or a list of [role, content]), `answer`
(the task's reference) and `facts` are JSON."""

TRAJECTORY_FIELDS = [
    pa.field("task_id", pa.string()),
    pa.field("sample", pa.int32()),
    pa.field("model", pa.string()),
    pa.field("token_ids", pa.list_(pa.int32())),
    pa.field("loss_mask", pa.list_(pa.bool_())),
    pa.field("logprobs", _FLOATS),
    pa.field("weight_versions", pa.list_(_VERSION)),
    pa.field("turns", pa.list_(_TURN)),
    pa.field("finish_reason", pa.string()),
    pa.field("artifact", pa.string()),
    pa.field("parent", _PARENT),
    pa.field("payload", pa.map_(pa.string(), _ARRAY)),
    pa.field("media", pa.list_(_MEDIA)),
    pa.field("env_info", pa.map_(pa.string(), _NUMBER_OR_TEXT)),
]

SCORE_FIELDS = [
    pa.field("reward", pa.float64()),
    pa.field("components", pa.map_(pa.string(), pa.float64())),
    pa.field("spans", pa.list_(_SPAN)),
    pa.field("columns", pa.map_(pa.string(), _FLOATS)),
    pa.field("note", pa.string()),
]

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32()),
        *GROUP_FIELDS,
        *TRAJECTORY_FIELDS,
        *SCORE_FIELDS,
        *REFERENCE_FIELDS,
    ]
)

_T = TypeVar("_T")
_Array = npt.NDArray[Any]


def to_table(groups: Sequence[ScoredGroup], step: int) -> pa.Table:
    """The rows of `groups`, in order.

    Raises ValueError where a group has no trajectories, or an array has a dtype that the record
    does not allow (or that cannot be written without pickling).
    """
    for group in groups:
        if not group.trajectories:
            raise ValueError(f"group {group.id} of task {group.task.id!r} has no trajectories")
    index = np.repeat(np.arange(len(groups)), [len(group.rows) for group in groups])
    trajectories = [t for group in groups for t in group.rows]
    scores = [
        score for group in groups for _, score in zip(group.rows, group.row_scores, strict=True)
    ]
    columns = {"step": pa.array(np.full(len(trajectories), step, np.int32))}
    columns |= {name: array.take(index) for name, array in _group_arrays(groups).items()}
    columns |= _trajectory_arrays(trajectories) | _score_arrays(scores)
    columns |= reference_arrays(groups)
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def from_table(table: pa.Table) -> ScoredGroup:
    """The group whose rows are `table` (all of them, and no other's); arrays are fresh copies."""
    first = {field.name: table.column(field.name)[0].as_py() for field in GROUP_FIELDS}
    rows = table.num_rows
    columns = {field.name: flat(table, field.name) for field in TRAJECTORY_FIELDS}
    scores = {field.name: flat(table, field.name) for field in SCORE_FIELDS}
    trajectories, row_scores = _read_trajectories(columns, rows), _read_scores(scores, rows)
    companion = None
    if trajectories[-1].sample == COMPANION:
        companion = Companion(trajectories[-1], row_scores[-1], read_beside(table))
        trajectories, row_scores = trajectories[:-1], row_scores[:-1]
    reference = None
    if first["reference_version"] is not None:
        reference = read_reference(first["reference_version"], table, trajectories)
    return ScoredGroup(
        id=GroupId(first["group_epoch"], first["group_position"], first["group_attempt"]),
        task=_read_task(first),
        trajectories=trajectories,
        scores=row_scores,
        reference=reference,
        reward_versions=dict(first["reward_versions"]),
        timings=dict(first["timings"]),
        cut_off=tuple(first["cut_off"]),
        companion=companion,
    )


def read_task(table: pa.Table) -> Task:
    """The task that the first row of `table` answers."""
    return _read_task({f.name: table.column(f.name)[0].as_py() for f in GROUP_FIELDS})


def _group_arrays(groups: Sequence[ScoredGroup]) -> dict[str, pa.Array]:
    tasks = [group.task for group in groups]
    return {
        "group_epoch": pa.array([group.id.epoch for group in groups], pa.int64()),
        "group_position": pa.array([group.id.position for group in groups], pa.int64()),
        "group_attempt": pa.array([group.id.attempt for group in groups], pa.int64()),
        "task": pa.array([task.id for task in tasks], pa.string()),
        "env": pa.array([task.env for task in tasks], pa.string()),
        "prompt": pa.array([json.dumps(task.prompt) for task in tasks], pa.string()),
        "answer": pa.array([json.dumps(task.reference) for task in tasks], pa.string()),
        "tags": pa.array([task.tags for task in tasks], pa.list_(pa.string())),
        "facts": pa.array([json.dumps(dict(task.facts)) for task in tasks], pa.string()),
        "task_media": _struct_lists([_media_rows(task.media) for task in tasks], _MEDIA),
        "reference_version": pa.array(
            [group.reference.version if group.reference else None for group in groups],
            pa.string(),
        ),
        "reward_versions": _maps([group.reward_versions for group in groups], pa.string()),
        "timings": _maps([group.timings for group in groups], pa.float64()),
        "cut_off": pa.array([group.cut_off for group in groups], pa.list_(pa.int32())),
    }


def _trajectory_arrays(rows: Sequence[Trajectory]) -> dict[str, pa.Array]:
    spans = [[(span.start, *span.version) for span in t.weight_versions] for t in rows]
    turns = [[(turn.role, turn.start, turn.end, turn.text) for turn in t.turns] for t in rows]
    payloads = [{name: _array_row(name, a) for name, a in t.payload.items()} for t in rows]
    infos = [{name: _number_or_text(v) for name, v in t.env_info.items()} for t in rows]
    return {
        "task_id": pa.array([t.task_id for t in rows], pa.string()),
        "sample": pa.array([t.sample for t in rows], pa.int32()),
        "model": pa.array([t.model for t in rows], pa.string()),
        "token_ids": number_lists([t.token_ids for t in rows], np.int32, "token_ids"),
        "loss_mask": number_lists([t.loss_mask for t in rows], np.bool_, "loss_mask"),
        "logprobs": number_lists([t.logprobs for t in rows], np.float32, "logprobs"),
        "weight_versions": _struct_lists(spans, _VERSION),
        "turns": _struct_lists(turns, _TURN),
        "finish_reason": pa.array([t.finish_reason for t in rows], pa.string()),
        "artifact": pa.array([t.artifact for t in rows], pa.string()),
        "parent": pa.array(
            [t.parent and {"task_id": t.parent[0], "offset": t.parent[1]} for t in rows], _PARENT
        ),
        "payload": _struct_maps(payloads, _ARRAY),
        "media": _struct_lists([_media_rows(t.media) for t in rows], _MEDIA),
        "env_info": _struct_maps(infos, _NUMBER_OR_TEXT),
    }


def _score_arrays(scores: Sequence[Score]) -> dict[str, pa.Array]:
    spans = [[(span.name, span.start, span.end, span.value) for span in s.spans] for s in scores]
    columns = [column for s in scores for column in s.columns.values()]
    return {
        "reward": pa.array([s.value for s in scores], pa.float64()),
        "components": _maps([s.components for s in scores], pa.float64()),
        "spans": _struct_lists(spans, _SPAN),
        "columns": _map_array(
            [s.columns for s in scores], number_lists(columns, np.float32, "columns")
        ),
        "note": pa.array([s.note for s in scores], pa.string()),
    }


def _structs(rows: Sequence[tuple[Any, ...]], struct: pa.StructType) -> pa.StructArray:
    fields = [struct.field(i) for i in range(struct.num_fields)]
    columns = zip(*rows, strict=True) if rows else [()] * len(fields)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, fields, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def _struct_lists(rows: Sequence[Sequence[tuple[Any, ...]]], struct: pa.StructType) -> pa.ListArray:
    offsets = offsets_of(map(len, rows), len(rows))
    values = _structs(list(chain.from_iterable(rows)), struct)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(struct))


def _map_array(rows: Sequence[Mapping[str, Any]], items: pa.Array) -> pa.MapArray:
    offsets = offsets_of(map(len, rows), len(rows))
    keys = pa.array(list(chain.from_iterable(rows)), pa.string())
    return pa.MapArray.from_arrays(pa.array(offsets), keys, items)


def _maps(rows: Sequence[Mapping[str, Any]], item: pa.DataType) -> pa.MapArray:
    return _map_array(rows, pa.array([v for row in rows for v in row.values()], item))


def _struct_maps(
    rows: Sequence[Mapping[str, tuple[Any, ...]]], struct: pa.StructType
) -> pa.MapArray:
    return _map_array(rows, _structs([v for row in rows for v in row.values()], struct))


def _media_rows(media: Sequence[Media]) -> list[tuple[str, str, str]]:
    return [(m.kind, m.content_hash, m.reference) for m in media]


def _number_or_text(value: float | str) -> tuple[float | None, str | None]:
    return (None, value) if isinstance(value, str) else (float(value), None)


def _array_row(name: str, array: _Array) -> tuple[str, list[int], bytes]:
    if array.dtype.kind in "OV":
        raise ValueError(
            f"payload {name!r} has dtype {array.dtype}, which cannot be written without pickling: "
            "use numbers, booleans or fixed-width strings"
        )
    return array.dtype.str, list(array.shape), array.tobytes()


def _read_task(row: Mapping[str, Any]) -> Task:
    prompt = json.loads(row["prompt"])
    return Task(
        id=row["task"],
        prompt=prompt if isinstance(prompt, str) else tuple(Message(*pair) for pair in prompt),
        reference=cast(Json, json.loads(row["answer"])),
        env=row["env"],
        tags=tuple(row["tags"]),
        facts=json.loads(row["facts"]),
        media=tuple(Media(**media) for media in row["task_media"]),
    )


def _read_trajectories(columns: Mapping[str, pa.Array], rows: int) -> tuple[Trajectory, ...]:
    lists = {n: read_lists(columns[n]) for n in ("token_ids", "loss_mask", "logprobs")}
    plain = {name: columns[name].to_pylist() for name in columns if name not in lists}
    return tuple(
        Trajectory(
            task_id=plain["task_id"][i],
            sample=plain["sample"][i],
            model=plain["model"][i],
            token_ids=_present(lists["token_ids"][i]),
            loss_mask=_present(lists["loss_mask"][i]),
            logprobs=lists["logprobs"][i],
            weight_versions=tuple(
                VersionSpan(v["start"], WeightVersion(v["step"], v["incarnation"]))
                for v in plain["weight_versions"][i]
            ),
            turns=tuple(Turn(**turn) for turn in plain["turns"][i]),
            finish_reason=cast(FinishReason, plain["finish_reason"][i]),
            artifact=plain["artifact"][i],
            parent=_read_parent(plain["parent"][i]),
            payload={name: _read_array(array) for name, array in plain["payload"][i]},
            media=tuple(Media(**media) for media in plain["media"][i]),
            env_info={
                name: value["number"] if value["text"] is None else value["text"]
                for name, value in plain["env_info"][i]
            },
        )
        for i in range(rows)
    )


def _read_scores(columns: Mapping[str, pa.Array], rows: int) -> tuple[Score, ...]:
    maps = columns["columns"]
    arrays = [_present(array) for array in read_lists(maps.items)]
    keys = maps.keys.to_pylist()
    offsets = maps.offsets.to_pylist()
    plain = {n: columns[n].to_pylist() for n in ("reward", "components", "spans", "note")}
    return tuple(
        Score(
            value=plain["reward"][i],
            components=dict(plain["components"][i]),
            spans=tuple(Span(**span) for span in plain["spans"][i]),
            columns=dict(
                zip(
                    keys[offsets[i] : offsets[i + 1]],
                    arrays[offsets[i] : offsets[i + 1]],
                    strict=True,
                )
            ),
            note=plain["note"][i],
        )
        for i in range(rows)
    )


def _read_parent(row: Mapping[str, Any] | None) -> tuple[str, int] | None:
    return (row["task_id"], row["offset"]) if row is not None else None


def _read_array(row: Mapping[str, Any]) -> _Array:
    return np.ndarray(row["shape"], np.dtype(row["dtype"]), row["data"]).copy()


def _present(value: _T | None) -> _T:
    assert value is not None, "this column has no nulls"
    return value
