"""Who lives on is found, whether or not its parent does."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil

from tests.chaos.census import Census
from tests.e2e import runs

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "outlives"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_stopped_orphan_is_found_by_name_and_one_that_has_ended_is_not() -> None:
    census = Census()
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        census.look([psutil.Process(parent.pid)])
        orphan.send_signal(signal.SIGSTOP)
        parent.kill()
    try:
        census.look([])
        [(found, called)] = census.living().items()
        assert found == orphan and called.endswith("outlives")
    finally:
        orphan.kill()
    runs.wait_until(lambda: not census.living(), "the orphan was killed and counts as alive", 10)
