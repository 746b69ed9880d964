"""Rows of a data set, and the usual way from a row to a task.

Owns what is said when a field is missing. Where rows come from is `files` and `hub`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from manta.envs.records import Json, Message, Task


@dataclass(frozen=True, slots=True)
class Row:
    """The row numbered `index` (from 0) of a data set; `where` names it in messages."""

    index: int
    where: str
    values: Mapping[str, Json]

    def value(self, field: str) -> Json:
        """Raises ValueError where the row has no such field or it is null."""
        value = self.values.get(field)
        if value is None:
            raise ValueError(
                f"{self.where} has no field {field!r} (it has {sorted(self.values)}): correct the "
                "row or name the right column in env.options"
            )
        return value

    def text(self, field: str) -> str:
        """Raises ValueError where the field is missing or no text."""
        value = self.value(field)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: field {field!r} is {value!r}, not a text")
        return value


ToTask: TypeAlias = Callable[[Row], Task]


@dataclass(frozen=True, slots=True)
class Columns:
    """Tasks straight from columns.

    `prompt` holds a text, or a list of messages with `role` and `content`; `id` is optional (the
    row number serves without it).
    """

    env: str
    prompt: str
    reference: str
    id: str | None = None

    def __call__(self, row: Row) -> Task:
        """Raises ValueError naming the row and the field that is missing or of a wrong kind."""
        name = str(row.index) if self.id is None else str(row.value(self.id))
        return Task(
            id=f"{self.env}/{name}",
            prompt=prompt_of(row, self.prompt),
            reference=row.value(self.reference),
            env=self.env,
        )


def prompt_of(row: Row, field: str) -> str | tuple[Message, ...]:
    """A text, or a list of messages with `role` and `content`. Raises ValueError for neither."""
    value = row.value(field)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        turns = [turn for turn in value if isinstance(turn, dict)]
        pairs = [(turn.get("role"), turn.get("content")) for turn in turns]
        messages = tuple(
            Message(role, content)
            for role, content in pairs
            if isinstance(role, str) and isinstance(content, str)
        )
        if len(messages) == len(value):
            return messages
    raise ValueError(
        f"{row.where}: field {field!r} is neither a text nor a list of messages "
        f"({{role, content}}): {value!r:.80}"
    )
