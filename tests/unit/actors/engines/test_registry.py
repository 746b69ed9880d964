from __future__ import annotations

import subprocess
import sys


def test_a_simulated_worker_loads_neither_transformers_nor_ray() -> None:
    code = (
        "import sys\n"
        "import manta.actors.engines.registry, manta.actors.engines.simulated\n"
        "print(*sorted({'transformers', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
