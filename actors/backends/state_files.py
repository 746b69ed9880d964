"""A backend's state as files: safetensors for tensors, JSON for scalars, the JSON written last.

Owns the file names, how a state is spread over several files, and what makes a folder unreadable.
What the tensors mean is the backend's.

A whole state is `model.safetensors`, `optimizer.safetensors` and `learner.json`. Ranks that write
side by side each write a shard, `model-00001-of-00002.safetensors` and so on: whole tensors, or
pieces of tensors, whose place the file's metadata says. Reading puts either together again, so who
reads needs not be as many as who wrote.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion

PARAMETERS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
SCALARS = "learner.json"

UPDATES = "updates"
"""Beside a resident's parameters: how many updates it has had, `NAME.updates`."""

_PIECES = "pieces"
"""The metadata key of a file that holds pieces: JSON, name -> [first element, shape]."""


@dataclass(frozen=True, slots=True)
class Scalars:
    """`updates` counts the optimizer updates applied so far; `base` is the hash of the frozen
    weights that trained ones (an adapter) belong to, if any."""

    optimizer: str
    updates: int
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a state that writer `index` of `count` writes, counted from 0."""

    index: int = 0
    count: int = 1

    def name(self, whole: str) -> str:
        """What a file is called: `model.safetensors`, or `model-00001-of-00002.safetensors`."""
        if self.count == 1:
            return whole
        stem, dot, suffix = whole.partition(".")
        return f"{stem}-{self.index + 1:05d}-of-{self.count:05d}{dot}{suffix}"


WHOLE = Shard()


@dataclass(frozen=True, slots=True)
class Piece:
    """`tensor` has the elements from `start` on of a tensor of `shape`, both flattened: a rank's
    rows, or its share of a flat buffer."""

    tensor: Tensor
    start: int
    shape: tuple[int, ...]


Tensors: TypeAlias = Mapping[str, "Tensor | Piece"]


def write_state(
    folder: Path, parameters: Tensors, optimizer: Tensors, scalars: Scalars, shard: Shard = WHOLE
) -> None:
    """Each file appears under its name only when it is complete; the first shard has the scalars.

    Raises OSError where a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in ((PARAMETERS, parameters), (OPTIMIZER, optimizer)):
        _write_tensors(folder / shard.name(name), tensors)
    if shard.index == 0:
        (folder / f"{SCALARS}.partial").write_text(json.dumps(asdict(scalars)))
        os.replace(folder / f"{SCALARS}.partial", folder / SCALARS)


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in host memory that stays as it is; page-locked where a device copies into it."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor.detach())


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Scalars]:
    """Parameters, optimizer tensors and scalars below `folder`, whole, whoever wrote them.

    Raises ValueError naming the file that is missing, truncated or otherwise unreadable.
    """
    return read_parameters(folder), _read_tensors(folder, OPTIMIZER), read_scalars(folder)


def read_scalars(folder: Path) -> Scalars:
    """Raises ValueError as above."""
    try:
        return Scalars(**json.loads((folder / SCALARS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(folder / SCALARS, error) from error


def refuse_other_optimizer(folder: Path, scalars: Scalars, optimizer: str) -> None:
    """Raises ValueError where the state below `folder`, of `scalars`, is another optimizer's."""
    if scalars.optimizer != optimizer:
        raise ValueError(
            f"{folder} was written with optimizer {scalars.optimizer!r}, this learner uses "
            f"{optimizer!r}: set learner.optimizer to continue it"
        )


def read_parameters(folder: Path) -> dict[str, Tensor]:
    """The parameters alone. Raises ValueError as above."""
    return _read_tensors(folder, PARAMETERS)


def read_resident(folder: Path, name: str) -> dict[str, Tensor]:
    """The parameters of the resident `name`, by their names in it; empty where there is none.
    Raises ValueError as above."""
    found = _read_tensors(folder, OPTIMIZER, f"{name}.")
    found.pop(UPDATES, None)
    return found


def read_weights(folder: Path, version: WeightVersion) -> Weights:
    """The parameters below `folder` as weights called `version`. Raises ValueError as above."""
    return pack(read_parameters(folder), version)


def _write_tensors(path: Path, tensors: Tensors) -> None:
    pieces = {name: part for name, part in tensors.items() if isinstance(part, Piece)}
    places = {name: [piece.start, list(piece.shape)] for name, piece in pieces.items()}
    plain = {
        name: (part.tensor if isinstance(part, Piece) else part).detach().cpu().contiguous()
        for name, part in tensors.items()
    }
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file(plain, partial, {_PIECES: json.dumps(places)} if places else None)
    except SafetensorError as error:  # what it says of a full disk
        raise OSError(f"{path.name}: {error}") from error
    os.replace(partial, path)


def _read_tensors(folder: Path, whole: str, prefix: str = "") -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    found: dict[str, Tensor] = {}
    pieces: dict[str, list[Piece]] = {}
    for path in _shards(folder, whole):
        try:
            with safe_open(path, framework="pt") as file:
                places = json.loads((file.metadata() or {}).get(_PIECES, "{}"))
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping: it has keys() alone
                for name in names:
                    tensor, own = file.get_tensor(name), name.removeprefix(prefix)
                    if name in places:
                        start, shape = places[name]
                        piece = Piece(tensor, start, tuple(shape))
                        pieces.setdefault(own, []).append(piece)
                    else:
                        found[own] = tensor
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error
    return found | {name: _joined(folder, name, parts) for name, parts in pieces.items()}


def _shards(folder: Path, whole: str) -> list[Path]:
    """The files that hold `whole`, all of them, also those that are missing."""
    stem, _, suffix = whole.partition(".")
    pattern = re.compile(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{suffix}")
    counts = {int(m[1]) for path in folder.glob(f"{stem}-*") if (m := pattern.match(path.name))}
    if not counts or (folder / whole).exists():
        return [folder / whole]
    count = max(counts)
    return [folder / Shard(index, count).name(whole) for index in range(count)]


def _joined(folder: Path, name: str, pieces: list[Piece]) -> Tensor:
    """The tensor that `pieces` make up, each element of which is in one of them."""
    shape = pieces[0].shape
    joined = torch.empty(shape, dtype=pieces[0].tensor.dtype)
    flat, end = joined.view(-1), 0
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if piece.start != end or piece.shape != shape:
            break
        end += piece.tensor.numel()
        flat[piece.start : end] = piece.tensor.reshape(-1)
    if end != joined.numel():
        raise ValueError(
            f"{folder}: of {name} {joined.numel():,} elements are wanted, its shards hold {end:,} "
            "in a row: the checkpoint is incomplete; resume from another one"
        )
    return joined


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"cannot read {path} ({error}): the checkpoint is incomplete; resume from another one"
    )
