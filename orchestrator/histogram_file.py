"""`histograms.jsonl`: how rewards, lengths and what the learner told were spread, a line a step.

Owns the file's form: stage, step, and by name where the bins begin and end (`from`, `to`), which
are of equal width, and their `counts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from manta.actors.histogram import Histogram
from manta.actors.line_file import LineFile


class HistogramFile:
    """Appends to the file at `path`; lines of steps after `last_step`, of a history that a resume
    leaves behind, are cut off."""

    def __init__(self, path: Path, last_step: int) -> None:
        self._file = LineFile(path)
        kept = 0
        for line in path.read_bytes().splitlines(keepends=True):
            if json.loads(line)["step"] > last_step:
                break
            kept += len(line)
        self._file.truncate(kept)

    def log(self, stage: str, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Adds the line of a step."""
        spread = {
            name: {"from": each.edges[0], "to": each.edges[-1], "counts": each.counts}
            for name, each in histograms.items()
        }
        self._file.append(json.dumps({"stage": stage, "step": step, **spread}))
