"""One Ray head for the tests that need not start a Ray of their own, as on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import runs
from tests.e2e.heads import free_port, head


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runs.Environment]:
    """The environment in which commands reach a running head, on localhost."""
    with head(tmp_path_factory.mktemp("head") / "head.log", free_port()) as environment:
        yield environment
