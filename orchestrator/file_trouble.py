"""A file or folder that the operating system refuses: told in one line, with what to do.

Owns the words. A disk that fills up while a run goes on is `manta.orchestrator.no_room`'s.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = "make room there, or name another place"
_FORBIDDEN = "name a place that this user may use, or change who may"
_IN_THE_WAY = "something else stands where it is needed: move it away, or name another place"
_UNNAMED = "is the path right, and the disk that it is on there?"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY,
    errno.ENOENT: _UNNAMED,
    errno.ENAMETOOLONG: _UNNAMED,
    errno.ELOOP: _UNNAMED,
    errno.EIO: _UNNAMED,
    errno.ESTALE: _UNNAMED,
    errno.ENODEV: _UNNAMED,
    errno.ENXIO: _UNNAMED,
}


def file_trouble(error: OSError) -> str | None:
    """None where it is about no file: a connection, or a fault of Manta's own."""
    if error.errno not in _ADVICE:
        return None
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{os.strerror(error.errno)}: {_ADVICE[error.errno]}"


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """Raises ValueError, of `what` and why, where a file that is needed for it is refused."""
    try:
        yield
    except OSError as error:
        why = file_trouble(error)
        if why is None:
            raise
        raise ValueError(f"{what}: {why}") from error
