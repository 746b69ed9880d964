"""Chat templates: the text that messages become, with the policy's next turn opened.

Owns the two kinds of template. Tokens, and what a turn adds to a trajectory, are
`manta.envs.render`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from manta.envs.records import Message

POLICY = "assistant"
"""The role under which the policy speaks."""


class ChatTemplate:
    """A Jinja template as it comes with a model, run in Jinja's immutable sandbox.

    The template sees `messages` (mappings with `role` and `content`), `add_generation_prompt` and
    the special tokens by name. It has no clock, so that equal messages give equal prompts.
    Raises ValueError where the template does not parse.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = json.dumps
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"chat template, line {error.lineno}: {error.message}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], opens_turn: bool = True) -> str:
        """The text of `messages` and, if wanted, the opening of the policy's turn.

        Raises ValueError where the template refuses the messages.
        """
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=opens_turn,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            roles = [m.role for m in messages]
            raise ValueError(f"chat template, messages by {roles}: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
