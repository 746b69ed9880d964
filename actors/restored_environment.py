"""Environment variables for what starts inside a `with` block alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored_environment() -> Iterator[os._Environ[str]]:
    """This process's environment, as it was before on the way out."""
    before = dict(os.environ)
    try:
        yield os.environ
    finally:
        os.environ.clear()
        os.environ.update(before)
