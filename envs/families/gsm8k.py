"""Grade-school word problems in the form of GSM8K (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

from typing import Literal

from manta.envs.families.family import Family
from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Message, Task
from manta.envs.rewards.answer import number
from manta.envs.rewards.exact import Exact
from manta.envs.sources.rows import Row
from manta.envs.sources.splits import FileSplits

MARKER = "####"
INSTRUCTION = f"Think step by step. End with a line of {MARKER} and the number."


class Gsm8k(Family):
    """Rows of `question` and `answer` from a JSON Lines or Parquet file or folder.

    `answer` ends in `#### NUMBER`, which is the reference; the whole text is the gold answer.
    `eval` is another such path; without it the last `eval_size` rows of `train` are held out.
    `prompt` is `text` (`Question: ...` and `Answer: `, for models without a chat format) or `chat`
    (one user message: the question and `instruction`).

    Raises ValueError for an unknown prompt form or sizes that leave a split empty; a task raises it
    where its row has no number after the marker.
    """

    def __init__(
        self,
        train: str,
        eval: str | None = None,
        eval_size: int = 256,
        prompt: Literal["text", "chat"] = "text",
        instruction: str = INSTRUCTION,
    ) -> None:
        if prompt not in ("text", "chat"):
            raise ValueError(f"gsm8k: prompt is {prompt!r}: choose text or chat")
        self._prompt = prompt
        self._instruction = instruction
        self._splits = FileSplits("gsm8k", train, eval, eval_size, self._task)
        self.verifier = Exact(after=MARKER)

    def source(self, split: Split) -> TaskSource:
        return self._splits.source(split)

    def gold(self, task: Task) -> str:
        return str(task.facts["answer"])

    def _task(self, row: Row, file: Split) -> Task:
        question, answer = row.text("question").strip(), row.text("answer").strip()
        found = number(answer.rpartition(MARKER)[2]) if MARKER in answer else None
        if found is None:
            raise ValueError(
                f"{row.where}: its answer has no number after {MARKER}: {answer[-60:]!r}"
            )
        prompt: str | tuple[Message, ...] = f"Question: {question}\nAnswer: "
        if self._prompt == "chat":
            prompt = (Message("user", f"{question}\n{self._instruction}"),)
        return Task(
            id=f"gsm8k/{file}/{row.index}",
            prompt=prompt,
            reference=str(found),
            env="gsm8k",
            facts={"answer": answer},
        )
