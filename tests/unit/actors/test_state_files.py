"""A backend's state in files, whole or spread over the ranks that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from manta.actors.backends.state_files import (
    Piece,
    Scalars,
    Shard,
    read_scalars,
    read_state,
    write_state,
)

SCALARS = Scalars("adamw", 7, base="hash")
PARAMETERS = {
    "matrix": torch.arange(15.0).reshape(5, 3),
    "vector": torch.arange(4.0),
    "number": torch.tensor(3.0),
}
OPTIMIZER = {"optimizer.matrix.exp_avg": torch.arange(15.0).reshape(5, 3) * 2}


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].shape == wanted[name].shape and torch.equal(found[name], wanted[name])
        for name in wanted
    )


def write_pieces(folder: Path, borders: list[int]) -> None:
    """`matrix` and its optimizer state in flat pieces, whatever else whole in the last shard."""
    count = len(borders) + 1
    for index, (start, end) in enumerate(zip([0, *borders], [*borders, 15], strict=True)):
        parts = [
            {
                name: Piece(tensor.reshape(-1)[start:end], start, (5, 3))
                for name, tensor in tensors.items()
                if tensor.shape == (5, 3)
            }
            for tensors in (PARAMETERS, OPTIMIZER)
        ]
        whole = {n: t for n, t in PARAMETERS.items() if t.shape != (5, 3)}
        last = whole if index == count - 1 else {}
        write_state(folder, {**parts[0], **last}, parts[1], SCALARS, Shard(index, count))


def test_one_writer_s_files_have_plain_names(tmp_path: Path) -> None:
    write_state(tmp_path, PARAMETERS, OPTIMIZER, SCALARS)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["learner.json", "model.safetensors", "optimizer.safetensors"]
    assert equal(load_file(tmp_path / "model.safetensors"), PARAMETERS)
    found, optimizer, scalars = read_state(tmp_path)
    assert equal(found, PARAMETERS)
    assert equal(optimizer, OPTIMIZER)
    assert scalars == SCALARS


@pytest.mark.parametrize("borders", [[7], [3, 3, 12], [1, 2, 14]])
def test_pieces_of_any_number_of_ranks_are_put_together(tmp_path: Path, borders: list[int]) -> None:
    write_pieces(tmp_path, borders)
    first = f"model-00001-of-{len(borders) + 1:05d}.safetensors"
    assert (tmp_path / first).exists()
    found, optimizer, scalars = read_state(tmp_path)
    assert equal(found, PARAMETERS)
    assert equal(optimizer, OPTIMIZER)
    assert scalars == SCALARS


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    write_pieces(tmp_path, [7])
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors"):
        read_state(tmp_path)


def test_pieces_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    for index, (start, end) in enumerate([(0, 6), (7, 15)]):
        piece = Piece(torch.arange(float(start), float(end)), start, (5, 3))
        write_state(tmp_path, {"matrix": piece}, {}, SCALARS, Shard(index, 2))
    with pytest.raises(ValueError, match="of matrix 15 elements are wanted, its shards hold 6"):
        read_state(tmp_path)


def test_a_checkpoint_of_before_adapters_has_no_base(tmp_path: Path) -> None:
    (tmp_path / "learner.json").write_text('{"optimizer": "sgd", "updates": 3}')
    assert read_scalars(tmp_path) == Scalars("sgd", 3, None)


def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.partial").mkdir()  # cannot be written either
    with pytest.raises(OSError, match="model"):
        write_state(tmp_path, PARAMETERS, OPTIMIZER, SCALARS)
