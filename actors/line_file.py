"""An append-only file of lines that survives a kill at any byte, and a full disk.

Owns appending, the repair of a torn last line, and cutting back to a checkpoint's position. What a
line says is its writer's business.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType


class LineFile:
    """Lines of UTF-8 text, each handed to the operating system as it is written.

    A kill of the process loses nothing that `append` returned from; a power cut may lose the tail.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes `path`; a last line without its newline (a torn write) is cut off."""
        self._path = path
        path.touch(exist_ok=True)
        self._file = path.open("r+b", buffering=0)
        self._end = self._last_line_border()
        self._file.truncate(self._end)
        self._file.seek(self._end)

    def append(self, line: str) -> None:
        """Adds `line`, which holds no newline.

        Raises OSError, with the file's name, where there is no room for all of it; what there was
        for is taken back, so that the file ends with a whole line.
        """
        assert "\n" not in line, "one line at a time"
        data = line.encode() + b"\n"
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError as error:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._end += len(data)

    def position(self) -> int:
        """Bytes so far, forced to disk, since a checkpoint may count on them: always the border
        between two lines."""
        os.fsync(self._file.fileno())
        return self._end

    def truncate(self, position: int) -> None:
        """Cuts the lines past byte `position` off.

        Raises ValueError where the file has no line border there: it is not the file of the
        checkpoint that named the position.
        """
        if position > self._end or (position > 0 and self._byte_before(position) != b"\n"):
            raise ValueError(
                f"{self._path} has no line that ends at byte {position} (it has {self._end} "
                "bytes): it was edited or replaced since the checkpoint; restore it or start anew"
            )
        self._file.truncate(position)
        self._file.seek(position)
        self._end = position

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _byte_before(self, position: int) -> bytes:
        self._file.seek(position - 1)
        byte = self._file.read(1)
        self._file.seek(self._end)
        assert byte is not None, "a blocking file"
        return byte

    def _last_line_border(self) -> int:
        """The byte after the last newline, looked for from the end."""
        end = self._file.seek(0, 2)
        while end > 0:
            start = max(0, end - 65536)
            self._file.seek(start)
            block = self._file.read(end - start) or b""
            newline = block.rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0
