"""What a learner keeps between steps beside its backend, as a file of a checkpoint.

Owns the file. What the backend keeps is `manta.actors.backends.state_files`'.
"""

from __future__ import annotations

import json
from pathlib import Path

KL = "kl.json"


def write_kl(folder: Path, coef: float) -> None:
    """JSON gives a float64 back to the bit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KL).write_text(json.dumps({"coef": coef}))


def read_kl(folder: Path) -> float:
    """Raises ValueError where there is no such file, or it says no coefficient."""
    try:
        told = json.loads((folder / KL).read_text())["coef"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / KL} does not say where the KL coefficient stood ({error}): go on from "
            "another checkpoint"
        ) from error
    return float(told)
