"""What a learner rank writes to the run directory: trajectories, and the hashes it stepped on.

`trained/rank=R.jsonl` is the ranks' own account of the groups that they trained on, one line a
group, to be held against the driver's ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from manta.actors.line_file import LineFile
from manta.envs.records import GroupId, ScoredGroup
from manta.envs.trajectory_files import write_groups


class RankFiles:
    def __init__(self, run_dir: Path, rank: int) -> None:
        self._run_dir, self._rank = run_dir, rank
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trajectories")
        (run_dir / "trained").mkdir(exist_ok=True)
        self._trained = LineFile(run_dir / "trained" / f"rank={rank}.jsonl")

    def note_trained(self, step: int, incarnation: int, hashes: Mapping[GroupId, str]) -> None:
        """Appends a line for each group before the rank steps on it."""
        where = {"step": step, "incarnation": incarnation}
        for group, hash_ in hashes.items():
            self._trained.append(json.dumps({**where, "group": group, "hash": hash_}))

    def write_trajectories(self, step: int, groups: list[ScoredGroup]) -> Future[None]:
        """Writes `trajectories/step=N/rank=R.parquet` beside the step; wait for it to report."""
        folder = self._run_dir / "trajectories" / f"step={step}"
        folder.mkdir(parents=True, exist_ok=True)
        return self._thread.submit(
            write_groups, str(folder / f"rank={self._rank}.parquet"), groups, step
        )
