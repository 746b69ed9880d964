"""Tasks from a data set on the Hugging Face hub, through the `datasets` package (the `hub` extra).

Owns loading by name. Nothing of it is imported before a source is made.
"""

from __future__ import annotations

from manta.envs.records import Json, Task
from manta.envs.sources.rows import Row, ToTask


class HubSource:
    """The rows of `split` of the data set `name`, kept in Arrow files on disk by `datasets`.

    `config` and `revision` are those of the hub. Raises ValueError where `datasets` is not
    installed or has no such data set.
    """

    def __init__(
        self,
        name: str,
        split: str,
        to_task: ToTask,
        config: str | None = None,
        revision: str | None = None,
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"data set {name}: the hub needs the `datasets` package: pip install manta-rl[hub]"
            ) from error
        try:
            self._data = datasets.load_dataset(name, config, split=split, revision=revision)
        except (OSError, ValueError) as error:
            raise ValueError(f"data set {name}, split {split!r}: {error}") from error
        self._where = f"{name}, split {split!r}"
        self._to_task = to_task

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row:
        """IndexError outside of 0..len-1."""
        index = range(len(self))[index]
        values: dict[str, Json] = self._data[index]
        return Row(index, f"row {index} of {self._where}", values)

    def task(self, index: int) -> Task:
        return self._to_task(self.row(index))
