"""The only place where messages become tokens.

Owns prompts, written answers, an environment's turns and decoding. It never sees generated tokens
again: a trajectory grows by appending what an engine returned and what this file adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manta.envs.chat_template import POLICY, ChatTemplate
from manta.envs.protocols import Tokenizer
from manta.envs.records import Int32, Message, Task
from manta.envs.tokenizer import FileTokenizer

MARK = "0manta0turn0"
"""Stands for the policy's words in a template, to find what follows them."""


class Renderer:
    """Messages to token ids.

    A text prompt is encoded as it is (after the begin token, where the tokenizer file has one).
    Messages go through `chat_template`, else through the template found beside the tokenizer,
    else through the plain template: `ROLE: CONTENT` per message, each on a new line, the policy's
    own earlier turns closed by the end token, and `assistant: ` to open its next.

    `tag` is put before every prompt: before its text, or before the content of its first message,
    whose role it shares, so that a template needs no place of its own for it.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_template: str | None = None, tag: str = ""
    ) -> None:
        self.tokenizer = tokenizer
        self.tag = tag
        self.eos_id = tokenizer.eos_id
        self._prefix_ids: tuple[int, ...] = ()
        special_tokens: dict[str, str] = {}
        if isinstance(tokenizer, FileTokenizer):
            chat_template = chat_template or tokenizer.chat_template
            special_tokens = tokenizer.special_tokens
            self._prefix_ids = tokenizer.prefix_ids
        self._template = ChatTemplate(chat_template, special_tokens) if chat_template else None

    def prompt_ids(self, task: Task) -> Int32:
        """int32[P]: the task's prompt, the policy's turn opened.

        Raises ValueError naming the task where the prompt is empty or cannot be encoded.
        """
        try:
            ids = self._prompt(task.prompt)
        except ValueError as error:
            raise ValueError(f"task {task.id}: {error}") from error
        if not ids:
            raise ValueError(f"task {task.id}: its prompt has no tokens")
        return np.array(ids, np.int32)

    def answer_ids(self, text: str) -> Int32:
        """int32[A]: a written answer and the end token."""
        return np.array([*self.tokenizer.encode(text), self.eos_id], np.int32)

    def reply_ids(
        self, message: Message, after: int | None = None, opens_turn: bool = True
    ) -> Int32:
        """int32[E]: what an environment's turn adds, up to the opening of the policy's next turn,
        or without that.

        `after` is the last token that the policy said. A template closes the policy's turn with a
        token of its own; it is left out where the policy has said it already.
        """
        if self._template is None:
            opening = f"{POLICY}: " if opens_turn else ""
            ids = self.tokenizer.encode(f"\n{message.role}: {message.content}\n{opening}")
        else:
            said = [Message("user", "?"), Message(POLICY, MARK), message]
            text = self._template.render(said, opens_turn)
            _, found, tail = text.partition(MARK)
            if not found:
                raise ValueError("the chat template leaves the policy's earlier turns out")
            ids = self.tokenizer.encode(tail)
            if ids and ids[0] == after:
                ids = ids[1:]
        return np.array(ids, np.int32)

    def decode(self, token_ids: Int32 | Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode([int(i) for i in token_ids])

    def _prompt(self, prompt: str | tuple[Message, ...]) -> list[int]:
        if isinstance(prompt, str):
            return [*self._prefix_ids, *self.tokenizer.encode(self.tag + prompt)]
        if self.tag:
            prompt = self._tagged(prompt)
        if self._template is not None:
            return self.tokenizer.encode(self._template.render(prompt))
        ids = list(self._prefix_ids)
        for message in prompt:
            ids += self.tokenizer.encode(f"{message.role}: {message.content}")
            if message.role == POLICY:
                ids.append(self.eos_id)
            ids += self.tokenizer.encode("\n")
        return ids + self.tokenizer.encode(f"{POLICY}: ")

    def _tagged(self, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        if not prompt:
            raise ValueError(f"its prompt has no message to put the tag {self.tag!r} before")
        return (Message(prompt[0].role, self.tag + prompt[0].content), *prompt[1:])
