"""Where learner groups start from: the newest whole checkpoint, under a number of their own.

Owns how a checkpoint becomes an order to start. When a group is to start is decided elsewhere.
"""

from __future__ import annotations

from manta.actors.step_work import StartOrder
from manta.orchestrator.checkpoint import Checkpoint, Checkpoints
from manta.orchestrator.config import RunFile
from manta.orchestrator.lives import Lives


class LearnerStarts:
    def __init__(self, run_file: RunFile, checkpoints: Checkpoints, lives: Lives) -> None:
        self._run_file, self._checkpoints, self._lives = run_file, checkpoints, lives

    @property
    def incarnation(self) -> int:
        """The present group's."""
        return self._lives.incarnation

    def again(self) -> StartOrder:
        """For a group that takes the place of one that fell: a new incarnation, noted as such.

        Checkpoints that are committed meanwhile remove none, until the group `has_read`. Reads
        every file of the checkpoint: call it from a thread.
        """
        self._checkpoints.hold()
        checkpoint, _ = self._checkpoints.latest()
        self._lives.begin(checkpoint.state.step if checkpoint else 0)
        return self.order(checkpoint)

    def has_read(self) -> None:
        """The group that started last has in memory what its order named."""
        self._checkpoints.release()

    def order(self, checkpoint: Checkpoint | None) -> StartOrder:
        """To start from `checkpoint` (None: from the initial weights), in the present incarnation.

        Raises ValueError where the checkpoint that has the learner's files is damaged.
        """
        stages = self._run_file.stages
        stage = next((stage.name for stage in stages if stage.needs_learner), "")
        if checkpoint is None:
            return StartOrder(0, self._lives.incarnation, stage, None)
        state, learner = checkpoint.state, checkpoint.learner
        if learner is None:
            learner = self._checkpoints.newest_learner(state.step)
        # The one that wrote the learner's files: what stands beside the policy is the stage's
        names = [stage.name for stage in stages]
        before = stages[: names.index(state.stage) + 1]
        stage = ([each.name for each in before if each.makes_policy] or [stage])[-1]
        restore_from = learner.location if learner else None
        return StartOrder(state.step, self._lives.incarnation, stage, restore_from)
