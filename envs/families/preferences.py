"""Pairs of answers, of which one was preferred: what DPO and reward models learn from."""

from __future__ import annotations

import math

from manta.envs.chat_template import POLICY
from manta.envs.families.family import Family
from manta.envs.protocols import Answer, Split, TaskSource
from manta.envs.records import MARGIN, Task
from manta.envs.rewards.answer import MAX_TEXT
from manta.envs.rewards.exact import Exact
from manta.envs.sources.rows import Row, prompt_of
from manta.envs.sources.splits import FileSplits


class Preferences(Family):
    """Rows of `prompt`, `chosen`, `rejected` and, if known, `margin` from a JSON Lines or Parquet
    file or folder.

    `prompt` is a text or a list of messages; an answer is a text or a list of one message of the
    assistant. `margin` is by how much the chosen one is to be preferred (a fact of the task; 0
    where it is missing). The chosen one is the gold answer. `eval` is another such path; without it
    the last `eval_size` rows of `train` are held out.

    Raises ValueError for sizes that leave a split empty; a task raises it where its row lacks a
    field, has the same answer twice, or chose an empty one.
    """

    num_answers = 2

    def __init__(self, train: str, eval: str | None = None, eval_size: int = 256) -> None:
        self._splits = FileSplits("preferences", train, eval, eval_size, _task)
        self.verifier = Exact()

    def source(self, split: Split) -> TaskSource:
        return self._splits.source(split)

    def gold(self, task: Task) -> str:
        return str(task.facts["chosen"])

    def answers(self, task: Task) -> tuple[Answer, ...]:
        """The chosen answer with reward 1, the rejected one with 0."""
        return Answer(self.gold(task), 1.0), Answer(str(task.facts["rejected"]), 0.0)


def _task(row: Row, file: Split) -> Task:
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    if chosen == rejected:
        raise ValueError(
            f"{row.where}: chosen and rejected are the same, so that nothing is preferred: "
            f"{chosen[:60]!r}; drop the row"
        )
    if not chosen.strip():
        raise ValueError(f"{row.where}: the chosen answer is empty: correct the row or drop it")
    facts: dict[str, float | str] = {"chosen": chosen, "rejected": rejected}
    margin = row.values.get(MARGIN)
    if margin is not None:
        if (
            isinstance(margin, bool)
            or not isinstance(margin, int | float)
            or not math.isfinite(margin)
        ):
            raise ValueError(f"{row.where}: field {MARGIN!r} is {margin!r}, not a finite number")
        facts[MARGIN] = float(margin)
    return Task(
        id=f"preferences/{file}/{row.index}",
        prompt=prompt_of(row, "prompt"),
        # As much of it as a verifier of whole answers reads
        reference=chosen[-MAX_TEXT:],
        env="preferences",
        facts=facts,
    )


def _answer(row: Row, field: str) -> str:
    value = row.value(field)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        role, content = value[0].get("role"), value[0].get("content")
        if role == POLICY and isinstance(content, str):
            return content
    if not isinstance(value, str):
        raise ValueError(
            f"{row.where}: field {field!r} is neither a text nor one message of the {POLICY}: "
            f"{value!r:.80}"
        )
    return value
