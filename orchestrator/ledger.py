"""The ledger: what became of every group, in the history that led to the current weights.

A group is trained at a step, filtered (with a reason) while a step was assembled, or dropped (with
a reason) and admitted again as its next attempt; a stage that trains nothing has it written. An
entry is written when the step that it belongs to is done, so that the file's length at a checkpoint
covers exactly the steps up to it; a resumed run cuts the file there. Owns `ledger.jsonl`; which
groups are outstanding is the feed's knowledge.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from manta.envs.records import GroupId

Outcome = Literal["trained", "filtered", "dropped", "written"]


@dataclass(frozen=True, slots=True)
class Entry:
    """`content_hash` is that of the group's summary; empty for a dropped group."""

    stage: str
    group: GroupId
    outcome: Outcome
    step: int
    reason: str = ""
    content_hash: str = ""


class Ledger:
    """Appends entries to `path`; totals by outcome are kept in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b")
        self.totals: Counter[str] = Counter()
        for entry in read_ledger(path):
            self.totals[entry.outcome] += 1

    def record(self, entries: Sequence[Entry]) -> None:
        """Appends `entries` and hands them to the operating system."""
        lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
        self._file.write(lines.encode())
        self._file.flush()
        self.totals.update(entry.outcome for entry in entries)

    def position(self) -> int:
        """The file's length in bytes, after forcing it to disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()


def truncate(path: Path, position: int) -> None:
    """Cuts the ledger back to what a checkpoint covers."""
    if path.exists():
        os.truncate(path, position)


def read_ledger(path: Path) -> list[Entry]:
    """The whole entries of `path`; a line that a crash cut short is not one."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        fields = json.loads(line)
        entries.append(Entry(**{**fields, "group": GroupId(*fields["group"])}))
    return entries
