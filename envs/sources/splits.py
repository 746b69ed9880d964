"""The two splits of a data set in files: what trains, and what is held out of it."""

from __future__ import annotations

from collections.abc import Callable

from manta.envs.protocols import Split, TaskSource
from manta.envs.records import Task
from manta.envs.sources.files import FileSource
from manta.envs.sources.part import Part
from manta.envs.sources.rows import Row


class FileSplits:
    """The rows at the path `train`, and those at `eval`; without the latter the last `eval_size`
    rows of `train` are held out. `to_task` is told in which file a row stands; `env` names the
    environment in errors.
    """

    def __init__(
        self,
        env: str,
        train: str,
        eval: str | None,
        eval_size: int,
        to_task: Callable[[Row, Split], Task],
    ) -> None:
        self._env = env
        self._train = FileSource(train, lambda row: to_task(row, "train"))
        self._eval = FileSource(eval, lambda row: to_task(row, "eval")) if eval else None
        self._eval_size = eval_size

    def source(self, split: Split) -> TaskSource:
        """Reads the file at the first use.

        Raises ValueError naming it where that fails, and for sizes that leave a split empty.
        """
        if self._eval is not None:
            return self._train if split == "train" else self._eval
        total = len(self._train)
        if not 0 < self._eval_size < total:
            raise ValueError(
                f"{self._env}: eval_size is {self._eval_size}: it must lie in 1..{total - 1}, "
                f"{self._train.path} has {total} rows; or name a file of its own as eval"
            )
        border = total - self._eval_size
        if split == "train":
            return Part(self._train, 0, border)
        return Part(self._train, border, total)
