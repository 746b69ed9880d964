"""From what is shown to the tokens that a reward model reads.

Tokens are born once: where the reward model has the policy's vocabulary it reads the trajectory's
own. Where it has another one it reads prompt and answer as text, in the form of its own chat
template. Owns which of the two holds, and that text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np

from manta.envs.chat_template import POLICY, ChatTemplate
from manta.envs.protocols import Tokenizer
from manta.envs.records import Int32, Message, Shown, Trajectory
from manta.envs.render import Renderer
from manta.envs.tokenizer import FileTokenizer

_FILE = "tokenizer.json"
_VOCABULARY = ("model", "added_tokens")
"""The parts of a tokenizer's file that say what an id means."""


class Wording(Protocol):
    def tokens(self, shown: Shown) -> Int32:
        """int32[L], L at least 1."""
        ...


class OwnTokens:
    """The trajectory's own tokens, prompt and all."""

    def tokens(self, shown: Shown) -> Int32:
        """Raises ValueError where several trajectories are shown, or one without tokens."""
        trajectory = only(shown)
        if not len(trajectory.token_ids):
            raise ValueError(f"{named(shown)} has no tokens to score")
        return trajectory.token_ids


class Retold:
    """Prompt and answer as text, for a model with another vocabulary.

    With a chat template: the task's messages (a text is one message of the user) and the answer,
    closed as the template closes a turn. Without: the prompt, the answer and the end token.
    """

    def __init__(self, tokenizer: FileTokenizer) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._template = None
        if tokenizer.chat_template is not None:
            self._template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)

    def tokens(self, shown: Shown) -> Int32:
        """Raises ValueError where the policy spoke several times: what others said in between is
        not in the text of its answer."""
        trajectory = only(shown)
        if sum(turn.role == POLICY for turn in trajectory.turns) > 1:
            raise ValueError(
                f"{named(shown)} has several turns: a reward model with another tokenizer than the "
                "policy's can score single answers only; choose one with the policy's tokenizer"
            )
        prompt, answer = shown.task.prompt, trajectory.artifact
        if self._template is None:
            before = self._renderer.prompt_ids(shown.task)
            return np.concatenate([before, self._renderer.answer_ids(answer)])
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        text = self._template.render([*messages, Message(POLICY, answer)], opens_turn=False)
        return np.array(self._tokenizer.encode(text), np.int32)


def wording_for(folder: Path, policy: Tokenizer) -> Wording:
    """How the reward model in `folder` is told what the policy, with this tokenizer, wrote. A
    folder without a tokenizer's file has the policy's."""
    file = folder / _FILE
    if not file.is_file() or _same_ids(file, policy):
        return OwnTokens()
    return Retold(FileTokenizer(str(file)))


def only(shown: Shown) -> Trajectory:
    """Raises ValueError where several trajectories are shown as one thing."""
    if len(shown.trajectories) != 1:
        raise ValueError(
            f"task {shown.task.id}: {len(shown.trajectories)} trajectories are shown as one; this "
            "reward model scores them one by one"
        )
    return shown.trajectories[0]


def named(shown: Shown) -> str:
    """The trajectory, for an error."""
    samples = ", ".join(str(each.sample) for each in shown.trajectories)
    return f"the trajectory of task {shown.task.id}, sample {samples},"


def _same_ids(file: Path, policy: Tokenizer) -> bool:
    if not isinstance(policy, FileTokenizer):
        return False
    found = [json.loads(each.read_text(encoding="utf-8")) for each in (file, Path(policy.path))]
    own, others = ([each.get(part) for part in _VOCABULARY] for each in found)
    return own == others
