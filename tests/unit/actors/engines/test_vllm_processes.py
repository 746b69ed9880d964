"""Processes that are killed, and the shared memory that they leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from manta.actors.engines.vllm_processes import Processes

HOLDER = """
from multiprocessing.shared_memory import SharedMemory
segment = SharedMemory(create=True, size=64)
print(segment.name, flush=True)
input()
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm on this system")
def test_what_killed_processes_had_mapped_is_unlinked() -> None:
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as holder:
        assert holder.stdout is not None
        segment = Path("/dev/shm") / holder.stdout.readline().strip()
        assert segment.exists()
        processes = Processes([holder.pid])
        processes.kill()
        assert holder.wait(10) == -9
        assert not segment.exists()
        processes.kill()
