"""A trajectory while it grows: tokens are appended and never made again.

Owns the alignment of tokens, loss mask, log-probs, version spans and turns. What is appended, and
when it ends, is `manta.envs.episode`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manta.envs.chat_template import POLICY
from manta.envs.records import (
    GIVEN,
    Bool,
    Completion,
    FinishReason,
    Float32,
    Int32,
    Trajectory,
    Turn,
    VersionSpan,
)


class Transcript:
    """Starts as a prompt int32[P], which does not train."""

    def __init__(self, prompt: Int32) -> None:
        self._tokens: list[Int32] = []
        self._masks: list[Bool] = []
        self._logprobs: list[Float32] = []
        self._versions: list[VersionSpan] = []
        self._turns: list[Turn] = []
        self.length = 0
        self.num_generated = 0
        self._append("prompt", prompt, np.zeros(len(prompt), np.float32), trained=False)

    @property
    def token_ids(self) -> Int32:
        """int32[L]: all tokens so far, the prefix of the next turn."""
        return np.concatenate(self._tokens)

    def say(self, completion: Completion, text: str = "") -> None:
        """The policy's turn; its version spans move to where its tokens stand here.

        Raises ValueError where the engine returned arrays of unequal lengths.
        """
        if len(completion.token_ids) != len(completion.logprobs):
            raise ValueError(
                f"an engine returned {len(completion.token_ids)} tokens with "
                f"{len(completion.logprobs)} log-probs"
            )
        for span in completion.weight_versions:
            if not self._versions or self._versions[-1].version != span.version:
                self._versions.append(VersionSpan(self.length + span.start, span.version))
        self.num_generated += len(completion.token_ids)
        self._append(POLICY, completion.token_ids, completion.logprobs, trained=True, text=text)

    def hear(self, role: str, token_ids: Int32, text: str = "") -> None:
        """A turn of the environment: part of the prefix, never trained."""
        self._append(role, token_ids, np.zeros(len(token_ids), np.float32), False, text)

    def finish(
        self,
        task_id: str,
        sample: int,
        model: str,
        finish_reason: FinishReason,
        artifact: str,
        env_info: Mapping[str, float | str],
    ) -> Trajectory:
        return Trajectory(
            task_id=task_id,
            sample=sample,
            model=model,
            token_ids=self.token_ids,
            loss_mask=np.concatenate(self._masks),
            logprobs=np.concatenate(self._logprobs),
            weight_versions=tuple(self._versions),
            turns=tuple(self._turns),
            finish_reason=finish_reason,
            artifact=artifact,
            env_info=env_info,
        )

    def _append(
        self, role: str, token_ids: Int32, logprobs: Float32, trained: bool, text: str = ""
    ) -> None:
        self._tokens.append(np.asarray(token_ids, np.int32))
        self._masks.append(np.full(len(token_ids), trained, np.bool_))
        self._logprobs.append(np.asarray(logprobs, np.float32))
        self._turns.append(Turn(role, self.length, self.length + len(token_ids), text))
        self.length += len(token_ids)


def given_trajectory(
    task_id: str, prompt: Int32, answer: Int32, artifact: str, sample: int = 0
) -> Trajectory:
    """A written answer int32[A] (end token and all) after a prompt: nothing sampled it."""
    start, end = len(prompt), len(prompt) + len(answer)
    return Trajectory(
        task_id=task_id,
        sample=sample,
        model=GIVEN,
        token_ids=np.concatenate([prompt, answer]).astype(np.int32),
        loss_mask=np.arange(end) >= start,
        logprobs=None,
        weight_versions=(),
        turns=(Turn("prompt", 0, start), Turn(POLICY, start, end)),
        finish_reason="stop",
        artifact=artifact,
    )
