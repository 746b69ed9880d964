import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from manta.envs.records import Json, Message, Task
from manta.envs.sources.files import FileSource
from manta.envs.sources.generator import GeneratedSource
from manta.envs.sources.hub import HubSource
from manta.envs.sources.part import Part
from manta.envs.sources.rows import Columns

COLUMNS = Columns(env="qa", prompt="question", reference="answer")
ROWS: list[dict[str, Json]] = [{"question": f"q{i}", "answer": str(i)} for i in range(5)]


def write_lines(path: Path, rows: list[dict[str, Json]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Json]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def check_rows(source: FileSource) -> None:
    assert len(source) == 5
    tasks = [source.task(index) for index in (4, 0, 2)]
    assert [(t.id, t.prompt, t.reference) for t in tasks] == [
        ("qa/4", "q4", "4"),
        ("qa/0", "q0", "0"),
        ("qa/2", "q2", "2"),
    ]
    with pytest.raises(IndexError):
        source.task(5)


def test_one_file_of_each_format(tmp_path: Path) -> None:
    check_rows(FileSource(write_lines(tmp_path / "a.jsonl", ROWS), COLUMNS))
    check_rows(FileSource(write_parquet(tmp_path / "a.parquet", ROWS), COLUMNS))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    check_rows(FileSource(str(packed), COLUMNS))


@pytest.mark.parametrize(("write", "suffix"), [(write_lines, "jsonl"), (write_parquet, "parquet")])
def test_folders_and_uris(tmp_path: Path, write: object, suffix: str) -> None:
    write(tmp_path / f"x/part-1.{suffix}", ROWS[:2])  # type: ignore[operator]
    write(tmp_path / f"x/sub/part-2.{suffix}", ROWS[2:])  # type: ignore[operator]
    (tmp_path / "x/_SUCCESS").write_text("")
    check_rows(FileSource(str(tmp_path / "x"), COLUMNS))
    check_rows(FileSource((tmp_path / "x").as_uri(), COLUMNS))


def test_texts_stay_texts_and_late_fields_stay(tmp_path: Path) -> None:
    rows: list[dict[str, Json]] = [{"question": "2024-01-01", "answer": 1}]
    rows.append({"question": "2024-01-02", "answer": "x", "late": [1, "two"]})
    source = FileSource(write_lines(tmp_path / "a.jsonl", rows), COLUMNS)
    assert source.task(0).prompt == "2024-01-01"
    assert source.task(1).reference == "x"
    assert source.row(1).values["late"] == [1, "two"]


def test_messages_and_ids_from_columns(tmp_path: Path) -> None:
    turns: Json = [{"role": "user", "content": "hi"}]
    row: dict[str, Json] = {"m": turns, "r": 1, "key": 77}
    columns = Columns(env="chat", prompt="m", reference="r", id="key")
    for path in (
        write_lines(tmp_path / "a.jsonl", [row]),
        write_parquet(tmp_path / "a.parquet", [row]),
    ):
        task = FileSource(path, columns).task(0)
        assert task == Task("chat/77", (Message("user", "hi"),), 1, "chat")


def test_errors_name_the_place(tmp_path: Path) -> None:
    def error(path: Path | str, index: int = 0) -> str:
        with pytest.raises(ValueError) as caught:
            FileSource(str(path), COLUMNS).task(index)
        return str(caught.value)

    missing = tmp_path / "none.jsonl"
    assert error(missing) == f"data {missing}: there is no such file or folder"
    assert "Unrecognized filesystem type" in error("nofs://bucket/a.jsonl")
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert error(empty) == f"data {empty}: there are no rows in it"
    (tmp_path / "folder").mkdir()
    assert "no files in the folder" in error(tmp_path / "folder")
    (tmp_path / "a.csv").write_text("x")
    assert "found ['a.csv']" in error(tmp_path / "a.csv")
    bad = write_lines(tmp_path / "bad.jsonl", [*ROWS[:1], {"question": "q", "reply": 1}])
    assert f"row 1 of {bad} (line 2) has no field 'answer'" in error(bad, 1)
    assert "['question', 'reply']" in error(bad, 1)
    table = write_parquet(tmp_path / "bad.parquet", [*ROWS[:1], {"question": "q", "answer": None}])
    assert f"row 1 of {table} has no field 'answer'" in error(table, 1)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "q", "answer": "a"}\n\n{"question\n[1]\n')
    assert f"row 1 of {broken} (line 3) is no JSON" in error(broken, 1)
    assert f"row 2 of {broken} (line 4) is no JSON object" in error(broken, 2)
    (tmp_path / "no.parquet").write_text("text")
    assert "not readable as Parquet" in error(tmp_path / "no.parquet")
    write_lines(tmp_path / "mixed/a.jsonl", ROWS)
    write_parquet(tmp_path / "mixed/a.parquet", ROWS)
    assert "expected files of one format" in error(tmp_path / "mixed")
    odd = write_lines(tmp_path / "odd.jsonl", [{"question": [{"role": "user"}], "answer": "1"}])
    assert "neither a text nor a list of messages" in error(odd)


def test_a_part_is_a_window() -> None:
    source = GeneratedSource(10, lambda index: Task(str(index), "p", None, "e"))
    part = Part(source, 6, 9)
    assert [part.task(index).id for index in range(len(part))] == ["6", "7", "8"]
    with pytest.raises(IndexError):
        part.task(3)
    with pytest.raises(IndexError):
        source.task(10)


def test_hub_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    write_lines(tmp_path / "data" / "train.jsonl", ROWS)
    source = HubSource(str(tmp_path / "data"), "train", COLUMNS)
    assert len(source) == 5
    assert source.task(3).prompt == "q3"
    with pytest.raises(ValueError, match="split 'nope'"):
        HubSource(str(tmp_path / "data"), "nope", COLUMNS)


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install manta-rl\[hub\]"):
        HubSource("any/name", "train", COLUMNS)
