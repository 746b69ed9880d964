"""A backend's state as files: safetensors for tensors, JSON for scalars, the JSON written last.

Owns the file names and what makes a folder unreadable. What the tensors mean is the backend's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion

PARAMETERS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
SCALARS = "learner.json"


@dataclass(frozen=True, slots=True)
class Scalars:
    """`updates` counts the optimizer updates applied so far."""

    optimizer: str
    updates: int


def write_state(
    folder: Path,
    parameters: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    scalars: Scalars,
) -> None:
    """Each file appears under its name only when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in ((PARAMETERS, parameters), (OPTIMIZER, optimizer)):
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, folder / f"{name}.partial")
        os.replace(folder / f"{name}.partial", folder / name)
    (folder / f"{SCALARS}.partial").write_text(json.dumps(asdict(scalars)))
    os.replace(folder / f"{SCALARS}.partial", folder / SCALARS)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Scalars]:
    """Parameters, optimizer tensors and scalars below `folder`.

    Raises ValueError naming the file that is missing, truncated or otherwise unreadable.
    """
    try:
        scalars = Scalars(**json.loads((folder / SCALARS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(folder / SCALARS, error) from error
    return _read_tensors(folder / PARAMETERS), _read_tensors(folder / OPTIMIZER), scalars


def read_weights(folder: Path, version: WeightVersion) -> Weights:
    """The parameters below `folder` as weights called `version`. Raises ValueError as above."""
    return pack(_read_tensors(folder / PARAMETERS), version)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"cannot read {path} ({error}): the checkpoint is incomplete; resume from another one"
    )
