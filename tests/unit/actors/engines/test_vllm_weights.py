"""The bytes that vLLM's processes read: there while they are loaded, and left behind by nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
import numpy as np
from manta.actors.engines import vllm_weights
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion
vllm_weights.SHARED_MEMORY = Path(sys.argv[1])
data = np.arange(100_000, dtype=np.uint8)
with vllm_weights._file(Weights(WeightVersion(1, 0), (), data, "")) as path:
    print(path, flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_while_it_loads_leaves_no_weights(tmp_path: Path) -> None:
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert held.stdout is not None
    path = Path(held.stdout.readline().strip())
    assert path.read_bytes() == bytes(i % 256 for i in range(100_000))
    os.kill(held.pid, signal.SIGKILL)
    held.communicate()
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []
