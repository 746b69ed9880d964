from __future__ import annotations

from pathlib import Path

import pytest

from manta.envs.records import GroupId
from manta.orchestrator.ledger import Entry, Ledger, Outcome, read_ledger, truncate


def entry(position: int, outcome: Outcome = "trained", step: int = 1) -> Entry:
    return Entry("rl", GroupId(0, position, 0), outcome, step, "why", f"hash-{position}")


def test_entries_come_back_and_totals_go_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record([entry(0), entry(1, "filtered"), entry(2)])
    assert ledger.totals == {"trained": 2, "filtered": 1}
    ledger.close()
    again = Ledger(path)
    assert again.totals == {"trained": 2, "filtered": 1}
    again.record([entry(3, "dropped", step=2)])
    assert again.totals == {"trained": 2, "filtered": 1, "dropped": 1}
    assert read_ledger(path) == [
        entry(0),
        entry(1, "filtered"),
        entry(2),
        entry(3, "dropped", step=2),
    ]
    assert again.position() == path.stat().st_size


def test_a_missing_ledger_is_empty(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "ledger.jsonl") == []


@pytest.mark.parametrize("lost", range(1, 40, 3))
def test_a_torn_last_line_is_no_entry_and_spoils_no_other(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record([entry(0), entry(1)])
    ledger.close()
    path.write_bytes(path.read_bytes()[:-lost])
    assert read_ledger(path) == [entry(0)]
    again = Ledger(path)
    assert again.totals == {"trained": 1}
    again.record([entry(2)])
    assert read_ledger(path) == [entry(0), entry(2)]


def test_a_resumed_run_cuts_at_the_checkpoint_s_position(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record([entry(0)])
    position = ledger.position()
    ledger.record([entry(1), entry(2)])
    ledger.close()
    truncate(path, position)
    assert Ledger(path).totals == {"trained": 1}
    truncate(path, 0)
    assert read_ledger(path) == []


@pytest.mark.parametrize("position", [10, 10_000])
def test_a_position_that_is_not_this_ledger_s_is_refused(tmp_path: Path, position: int) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).record([entry(0)])
    with pytest.raises(ValueError, match=r"ledger\.jsonl has no line that ends at byte"):
        truncate(path, position)


def test_a_lost_ledger_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line that ends at byte 7"):
        truncate(tmp_path / "ledger.jsonl", 7)


def test_a_line_that_is_no_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).record([entry(0)])
    with path.open("a") as file:
        file.write('{"stage": "rl"}\n')
    with pytest.raises(ValueError, match=r"ledger\.jsonl:2 is no ledger entry"):
        read_ledger(path)
