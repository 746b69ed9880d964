"""What a stage has written, by task: for rows that stand beside the samples of another one.

Owns which of a task's written samples an epoch takes. What is made of it is
`manta.envs.companion`'s, how files are read `manta.envs.trajectory_files`'.
"""

from __future__ import annotations

from pathlib import Path

from manta.envs.failures import GroupBroken
from manta.envs.records import COMPANION, Task, Trajectory
from manta.envs.seeds import sample_seed
from manta.envs.trajectory_files import TrajectoryReader


class WrittenSamples:
    """The samples in `folder` by the task that they answer; companions are none.

    Every epoch takes the next one of a task, from a start that follows from `seed`, `purpose` and
    the task, so that all are taken before one comes again: the same in every process, and after a
    resume. Raises ValueError as `TrajectoryReader` does.
    """

    def __init__(self, folder: str | Path, seed: int, purpose: str) -> None:
        self._folder, self._seed, self._purpose = folder, seed, purpose
        self._reader = TrajectoryReader(folder)
        self._places = self._reader.samples_by_task()

    def pick(self, task: Task, epoch: int) -> Trajectory:
        """The sample that stands beside those of `task` in `epoch`, as it was written.

        Raises GroupBroken where none is.
        """
        places = self._places.get(task.id)
        if not places:
            raise GroupBroken(
                f"task {task.id}: no sample of it is written in {self._folder}, which has "
                f"{len(self._places):,} tasks: let the stage that wrote it make more steps, and "
                "look in ledger.jsonl for groups that it dropped"
            )
        start = sample_seed(self._seed, f"{self._purpose}/{task.id}", 0, 0, COMPANION)
        index, place = places[(start + epoch) % len(places)]
        return self._reader.group(index).trajectories[place]
