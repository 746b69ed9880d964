"""Where the public data sets are that some tests read; such a test skips without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The file `name` in $MANTA_TEST_DATA, else in `shared/data` beside the repository."""
    root = Path(__file__).resolve().parents[1]
    above = [parent / "shared" / "data" for parent in root.parents]
    given = os.environ.get("MANTA_TEST_DATA")
    for folder in [Path(given)] if given else above:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is not here: set MANTA_TEST_DATA to the folder that holds it")
