from __future__ import annotations

import json
from pathlib import Path

from manta.actors.rank_files import RankFiles
from manta.envs.records import GroupId
from manta.envs.trajectory_files import TrajectoryReader
from tests.tiny import groups_of


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_hashes_are_on_file_before_the_step_and_lives_follow_each_other(tmp_path: Path) -> None:
    groups = groups_of((2, 3))
    hashes = {group.id: group.content_hash() for group in groups}
    files = RankFiles(tmp_path, rank=1)
    files.note_trained(4, 0, hashes)
    path = tmp_path / "trained" / "rank=1.jsonl"
    assert lines(path) == [
        {"step": 4, "incarnation": 0, "group": list(group), "hash": text}
        for group, text in hashes.items()
    ]
    RankFiles(tmp_path, rank=1).note_trained(5, 1, {GroupId(0, 9, 0): "hash"})
    assert len(lines(path)) == 3
    assert lines(path)[2]["incarnation"] == 1


def test_a_torn_line_of_a_rank_that_was_killed_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "trained" / "rank=0.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 1}\n{"st')
    RankFiles(tmp_path, 0).note_trained(2, 1, {GroupId(0, 1, 0): "hash"})
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_every_rank_has_a_file_of_its_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        RankFiles(tmp_path, rank).note_trained(1, 0, {GroupId(0, rank, 0): "hash"})
    assert [lines(tmp_path / "trained" / f"rank={r}.jsonl")[0]["group"] for r in (0, 1)] == [
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_a_rank_without_rows_writes_no_line(tmp_path: Path) -> None:
    RankFiles(tmp_path, 0).note_trained(1, 0, {})
    assert (tmp_path / "trained" / "rank=0.jsonl").read_text() == ""


def test_trajectories_lie_in_the_folder_of_their_step(tmp_path: Path) -> None:
    groups = groups_of((2, 3))
    RankFiles(tmp_path, rank=1).write_trajectories(12, groups).result()
    assert (tmp_path / "trajectories" / "step=12" / "rank=1.parquet").exists()
    reader = TrajectoryReader(tmp_path / "trajectories")
    assert [reader.group(i).content_hash() for i in range(len(reader))] == [
        group.content_hash() for group in groups
    ]
