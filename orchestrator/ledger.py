"""The ledger: what became of every group, in the history that led to the current weights.

A group is trained at a step, filtered (with a reason) while a step was assembled, or dropped (with
a reason) and, unless it broke too often, admitted again as its next attempt; a stage that trains
nothing has it written. The place of a task that the curriculum leaves out of an epoch is skipped,
with the reason. An entry is written when the step that it belongs to is done, so that the file's
length at a checkpoint covers exactly the steps up to it; a resumed run cuts the file there.
Owns `ledger.jsonl`; which groups are outstanding is the feed's knowledge.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from manta.actors.line_file import LineFile
from manta.envs.records import GroupId

DELIBERATE = ("overtaken", "too old", "the run stopped")
"""How reasons begin of groups that were dropped, but not because they broke."""

Outcome = Literal["trained", "filtered", "dropped", "written", "skipped"]


@dataclass(frozen=True, slots=True)
class Entry:
    """`content_hash` is that of the group's summary; empty for a group that is dropped or skipped.
    `step` of a skipped one is the newest whose pass rates counted."""

    stage: str
    group: GroupId
    outcome: Outcome
    step: int
    reason: str = ""
    content_hash: str = ""


_FIELDS = tuple(field.name for field in fields(Entry))


class Ledger:
    """Appends entries to `path`; totals by outcome are kept in memory."""

    def __init__(self, path: Path) -> None:
        """Goes on with the ledger at `path`, without a last line that a crash cut short."""
        self._file = LineFile(path)
        self.totals: Counter[str] = Counter(entry.outcome for entry in read_ledger(path))
        self.broken = self.settled = 0
        """Of this life of the driver: groups that the world broke, and all entries."""

    def record(self, entries: Sequence[Entry]) -> None:
        """Appends `entries` and hands them to the operating system."""
        for entry in entries:
            self._file.append(json.dumps({name: getattr(entry, name) for name in _FIELDS}))
        self.totals.update(entry.outcome for entry in entries)
        self.settled += len(entries)
        self.broken += sum(
            entry.outcome == "dropped" and not entry.reason.startswith(DELIBERATE)
            for entry in entries
        )

    def position(self) -> int:
        """The file's length in bytes, after forcing it to disk."""
        return self._file.position()

    def close(self) -> None:
        self._file.close()


def truncate(path: Path, position: int) -> None:
    """Cuts the ledger back to what a checkpoint covers.

    Raises ValueError where the file is not the one that the checkpoint counted.
    """
    with LineFile(path) as file:
        file.truncate(position)


def read_ledger(path: Path) -> list[Entry]:
    """The whole entries of `path`; a line that a crash cut short is not one.

    Raises ValueError, naming file and line, where a line is no entry.
    """
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            fields = json.loads(line)
            entries.append(Entry(**{**fields, "group": GroupId(*fields["group"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number} is no ledger entry: {error!r}") from error
    return entries
