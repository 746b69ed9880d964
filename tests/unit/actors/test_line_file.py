from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.actors.line_file import LineFile

lines = st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=8))


@settings(max_examples=50, deadline=None)
@given(lines, st.integers(0, 200), lines)
def test_a_kill_at_any_byte_loses_only_the_torn_line(
    tmp_path_factory: pytest.TempPathFactory, first: list[str], cut: int, second: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines"
    with LineFile(path) as file:
        for line in first:
            file.append(line)
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    with LineFile(path) as file:
        for line in second:
            file.append(line)
    whole = data[: data.rfind(b"\n") + 1]
    assert path.read_bytes() == whole + "".join(f"{line}\n" for line in second).encode()


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"whole\n" + b"x" * 200_000)
    with LineFile(path) as file:
        assert file.position() == len(b"whole\n")
    assert path.read_bytes() == b"whole\n"


def test_cutting_back_goes_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with LineFile(path) as file:
        file.append("one")
        position = file.position()
        file.append("two")
        file.truncate(position)
        file.append("three")
        assert path.read_text() == "one\nthree\n"
        file.truncate(0)
        assert path.read_text() == ""


def test_a_position_that_is_no_border_is_refused(tmp_path: Path) -> None:
    with LineFile(tmp_path / "lines") as file:
        file.append("one")
        for position in (2, 5):
            with pytest.raises(ValueError, match=f"lines has no line that ends at byte {position}"):
                file.truncate(position)
        file.append("two")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


def test_a_line_that_finds_no_room_leaves_no_part_of_itself(tmp_path: Path) -> None:
    """As on a full disk: the system takes a part of the line, and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LineFile(tmp_path / "lines") as file:
        file.append("whole")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with pytest.raises(OSError, match="lines"):
                file.append("too long by far")
            assert (tmp_path / "lines").read_bytes() == b"whole\n"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        file.append("room again")
    assert (tmp_path / "lines").read_bytes() == b"whole\nroom again\n"
