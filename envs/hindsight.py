"""Groups as they train, where what is learnt of a sample depends on its reward and on feedback.

Owns the tag of a reward, the exchange of a prompt's tokens, and which of the environment's tokens
train. Where a tag stands in a prompt is `manta.envs.render`'s; generated tokens stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from manta.envs.chat_template import POLICY
from manta.envs.episode import Limits, prompt_ids
from manta.envs.records import Int32, Score, ScoredGroup, Task, Trajectory, VersionSpan
from manta.envs.render import Renderer

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Hindsight:
    """`tags`, the worst one first, are the texts before the prompts of rows by their reward, parted
    by the rising `bounds` (no tags: prompts stay). `trains_feedback`: what the environment said
    after the policy's first turn trains too."""

    tags: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    trains_feedback: bool = False


class Relabeller:
    """Makes of groups as they were sampled, or written, groups as they train."""

    def __init__(self, hindsight: Hindsight, renderers: Sequence[Renderer], limits: Limits) -> None:
        """`renderers` put the tags before prompts, one each; `limits` are those of the lane."""
        self._hindsight = hindsight
        self._renderers = renderers
        self._limits = limits

    def room(self, task: Task, num_prompt: int) -> int:
        """The context, in tokens, that samples of `task` with a prompt of `num_prompt` tokens may
        fill, so that they fit under every tag.

        Raises ValueError where a prompt with its tag leaves no room for an answer token.
        """
        lengths = [len(prompt_ids(task, each, self._limits)) for each in self._renderers]
        return self._limits.context - max([0, *(length - num_prompt for length in lengths)])

    def relabelled(self, group: ScoredGroup) -> ScoredGroup:
        """`group` with every row under the tag of its reward, and the feedback in the loss.

        A row that trains otherwise than it was sampled has no log-probs: what the sampler said of
        its tokens is of another prompt, or there is nothing that it said of them. So has the group
        no reference statistics.

        Raises ValueError where a row does not fit the context under its tag, or has no prompt.
        """
        prompts = [prompt_ids(group.task, each, self._limits) for each in self._renderers]
        rows = [
            self._row(group.task, prompts, trajectory, score)
            for trajectory, score in zip(group.trajectories, group.scores, strict=True)
        ]
        return replace(
            group,
            trajectories=tuple(trajectory for trajectory, _ in rows),
            scores=tuple(score for _, score in rows),
            reference=None,
        )

    def _row(
        self, task: Task, prompts: Sequence[Int32], trajectory: Trajectory, score: Score
    ) -> tuple[Trajectory, Score]:
        if prompts:
            prompt = prompts[class_of(score.value, self._hindsight.bounds)]
            trajectory, score = _under(task, prompt, trajectory, score)
            if len(trajectory.token_ids) > self._limits.context:
                raise ValueError(
                    f"task {task.id}: sample {trajectory.sample} has {len(trajectory.token_ids)} "
                    f"tokens under the tag of its reward, more than the context of "
                    f"{self._limits.context}: raise model.context or filter the tasks"
                )
        if self._hindsight.trains_feedback:
            trajectory = _with_feedback(trajectory)
        return trajectory, score


def class_of(reward: float, bounds: Sequence[float]) -> int:
    """How many of the rising `bounds` a reward is above, in float32 as everywhere else."""
    return int(np.count_nonzero(np.float32(reward) > np.asarray(bounds, np.float32)))


def _under(
    task: Task, prompt: Int32, trajectory: Trajectory, score: Score
) -> tuple[Trajectory, Score]:
    """The row and what was said of its parts, after `prompt` instead of its own."""
    turns = trajectory.turns
    if not turns or turns[0].role != "prompt" or turns[0].start != 0:
        raise ValueError(
            f"task {task.id}: sample {trajectory.sample} does not say which of its tokens are the "
            "prompt, and algorithm.condition puts another one in its place: learn from "
            "trajectories that this version has written"
        )
    end = turns[0].end
    if np.array_equal(trajectory.token_ids[:end], prompt):
        return trajectory, score

    def moved(at: int) -> int:
        return at - end + len(prompt) if at >= end else min(at, len(prompt))

    row = replace(
        trajectory,
        token_ids=np.concatenate([prompt, trajectory.token_ids[end:]]),
        loss_mask=_after(len(prompt), trajectory.loss_mask[end:]),
        logprobs=None,
        weight_versions=tuple(
            VersionSpan(moved(span.start), span.version) for span in trajectory.weight_versions
        ),
        turns=tuple(replace(turn, start=moved(turn.start), end=moved(turn.end)) for turn in turns),
    )
    return row, replace(
        score,
        spans=tuple(
            replace(span, start=moved(span.start), end=moved(span.end)) for span in score.spans
        ),
        columns={name: _after(len(prompt), column[end:]) for name, column in score.columns.items()},
    )


def _after(num_prompt: int, values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """`values`, and nothing at `num_prompt` tokens before them."""
    return np.concatenate([np.zeros(num_prompt, values.dtype), values])


def _with_feedback(trajectory: Trajectory) -> Trajectory:
    """What others than the policy said after its first turn trains."""
    loss_mask = trajectory.loss_mask.copy()
    has_spoken = False
    for turn in trajectory.turns:
        has_spoken |= turn.role == POLICY
        if has_spoken and turn.role != POLICY:
            loss_mask[turn.start : turn.end] = True
    if np.array_equal(loss_mask, trajectory.loss_mask):
        return trajectory
    return replace(trajectory, loss_mask=loss_mask, logprobs=None)
