"""What backends that share parameters out promise on two ranks: to be the plain one.

All of them run in one pair of processes, which write down what the tests then compare.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from manta.actors.backends.agreed import probe_together
from manta.actors.backends.protocol import Backend, Sharded
from manta.actors.backends.registry import build_backend
from manta.actors.models.causal import model_state
from manta.actors.models.policy import evaluate, token_logprobs
from manta.actors.weight_tensors import pack, unpack
from tests.contract.backend_kinds import SHARDED, STAGES, settings_of
from tests.contract.test_backend import (
    SIZES,
    STEPS,
    VERSION,
    PolicyGradient,
    flat,
    gradient_plainly,
    relative,
    train,
)
from tiny import join_group, run_ranks, tiny_model, tiny_rows

OPTIMIZERS = ("sgd", "adamw")
SHARES = {"both": ([0, 3, 4, 9], [1, 2, 5, 6, 7, 8, 10, 11]), "one": (list(range(12)), [])}
"""Rows by rank: unequal numbers of micro-batches, and none at all for the second."""
CASES = [("adamw", "one"), ("adamw", "both"), ("sgd", "both")]
MORE = 5


def weights(backend: Backend, rank: int) -> str | None:
    """Rank 0's alone: the others only give their shards."""
    if rank == 0:
        return backend.weights(VERSION).sha256
    assert isinstance(backend, Sharded)
    backend.lend_shards()
    return None


def run_kind(kind: str, rank: int, folder: Path) -> dict[str, Any]:
    rows = tiny_rows(SIZES)
    loss = PolicyGradient(rows)
    found: dict[str, Any] = {}
    sgd = settings_of(kind, optimizer="sgd", clip_norm=0.0)
    # Another seed on other ranks: rank 0's parameters are what counts.
    backend = build_backend(sgd, tiny_model(0 if rank == 0 else 7))
    found["hash"] = weights(backend, rank)
    mine = [rows[i] for i in SHARES["both"][rank]]
    wants = ("logprob", "entropy")
    found["evaluated"] = backend.evaluate(mine, wants, 0.9)
    found["probe"] = probe_together(backend, [row.token_ids for row in rows] if rank == 0 else [])
    before = flat(backend)
    backend.update([mine[:1], mine[1:]] if rank else [mine], wants, 0.9, loss, 1024.0)
    found["gradient"] = (before - flat(backend)) / 1024.0
    for optimizer in OPTIMIZERS:
        for share in (share for how, share in CASES if how == optimizer):
            mine = [rows[i] for i in SHARES[share][rank]]
            settings = settings_of(kind, optimizer=optimizer, momentum=0.9, weight_decay=0.1)
            backend = build_backend(settings, tiny_model(0 if rank == 0 else 7))
            before = flat(backend)
            metrics = train(backend, mine, loss, 60, STEPS)
            found[f"{optimizer} {share}"] = (flat(backend) - before, metrics)
        backend.save(folder / f"{kind}-{optimizer}")
        # A loss that is not finite on one rank is an update for none.
        spoilt = PolicyGradient(rows, float("nan")) if rank else loss
        mine = [rows[i] for i in SHARES["both"][rank]]
        before = flat(backend)
        found[f"{optimizer} spoilt"] = train(backend, mine, spoilt, 60, 1)["skipped_updates"]
        found[f"{optimizer} unmoved"] = torch.equal(flat(backend), before)
        train(backend, mine, loss, 60, MORE)
        found[f"{optimizer} went on"] = flat(backend) - before
        backend.load(folder / f"plain-{optimizer}")
        before = flat(backend)
        train(backend, mine, loss, 60, MORE)
        found[f"{optimizer} resumed"] = (before, flat(backend) - before)
    return found


def rank_main(rank: int, world_size: int, kinds: list[str], folder: Path) -> None:
    join_group(rank, world_size, folder)
    torch.save({kind: run_kind(kind, rank, folder) for kind in kinds}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def plainly(optimizer: str, folder: Path) -> dict[str, Any]:
    """What the plain backend makes of it alone; leaves a checkpoint after `STEPS`."""
    rows = tiny_rows(SIZES)
    settings = settings_of("plain", optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    backend = build_backend(settings, tiny_model())
    before = flat(backend)
    metrics = train(backend, rows, PolicyGradient(rows), 60, STEPS)
    moved = flat(backend)
    backend.save(folder / f"plain-{optimizer}")
    train(backend, rows, PolicyGradient(rows), 60, MORE)
    return {"trained": (moved - before, metrics), "after": moved, "went on": flat(backend) - moved}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    """The folder with checkpoints, what plain does alone, and what each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    alone = {optimizer: plainly(optimizer, folder) for optimizer in OPTIMIZERS}
    kinds = ["fsdp", *(STAGES if find_spec("deepspeed") else ())]
    run_ranks(rank_main, 2, kinds, folder)
    return folder, alone, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


Here = tuple[Path, dict[str, Any], list[dict[str, dict[str, Any]]]]


@pytest.mark.parametrize("kind", SHARDED)
def test_weights_are_gathered_under_their_own_names(here: Here, kind: str) -> None:
    assert here[2][0][kind]["hash"] == pack(model_state(tiny_model()), VERSION).sha256


@pytest.mark.parametrize("kind", SHARDED)
def test_the_gradient_is_the_sum_over_ranks(here: Here, kind: str) -> None:
    rows = tiny_rows(SIZES)
    wanted = gradient_plainly(tiny_model(), rows, PolicyGradient(rows))
    for found in here[2]:
        assert relative(found[kind]["gradient"], wanted) < 1e-5


@pytest.mark.parametrize("kind", SHARDED)
def test_each_rank_scores_its_own_rows(here: Here, kind: str) -> None:
    rows = tiny_rows(SIZES)
    for rank, found in enumerate(here[2]):
        mine = [rows[i] for i in SHARES["both"][rank]]
        wanted = evaluate(tiny_model(), mine, ("logprob", "entropy"), 0.9)
        for name, values in found[kind]["evaluated"].items():
            torch.testing.assert_close(values, wanted[name].detach(), rtol=1e-5, atol=1e-6)
    probe = token_logprobs(tiny_model(), [row.token_ids for row in rows])
    for values, expected in zip(here[2][0][kind]["probe"], probe, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(values), torch.from_numpy(expected), rtol=1e-5, atol=1e-6
        )
    assert here[2][1][kind]["probe"] == ()


@pytest.mark.parametrize(("optimizer", "share"), CASES)
@pytest.mark.parametrize("kind", SHARDED)
def test_the_movement_is_the_plain_one(here: Here, kind: str, share: str, optimizer: str) -> None:
    """Also where a rank has no rows at all."""
    _, alone, ranks = here
    movement, metrics = alone[optimizer]["trained"]
    for found in ranks:
        moved, told = found[kind][f"{optimizer} {share}"]
        assert relative(moved, movement) < 1e-4
        assert told == pytest.approx(metrics, rel=1e-4)
    first, second = (found[kind][f"{optimizer} {share}"] for found in ranks)
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", SHARDED)
def test_a_loss_that_is_not_finite_on_one_rank_moves_none(
    here: Here, kind: str, optimizer: str
) -> None:
    _, alone, ranks = here
    for found in ranks:
        assert found[kind][f"{optimizer} spoilt"] == 1
        assert found[kind][f"{optimizer} unmoved"]
        assert relative(found[kind][f"{optimizer} went on"], alone[optimizer]["went on"]) < 1e-4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", SHARDED)
def test_a_plain_checkpoint_goes_on_here(here: Here, kind: str, optimizer: str) -> None:
    _, alone, ranks = here
    for found in ranks:
        before, movement = found[kind][f"{optimizer} resumed"]
        assert torch.equal(before, alone[optimizer]["after"])
        assert relative(movement, alone[optimizer]["went on"]) < 1e-4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", SHARDED)
def test_its_checkpoint_goes_on_with_the_plain_backend(
    here: Here, kind: str, optimizer: str
) -> None:
    folder, alone, ranks = here
    rows = tiny_rows(SIZES)
    settings = settings_of("plain", optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    backend = build_backend(settings, tiny_model(seed=3))
    backend.load(folder / f"{kind}-{optimizer}")
    before: Tensor = flat(backend)
    assert relative(before, alone[optimizer]["after"]) < 1e-5
    train(backend, rows, PolicyGradient(rows), 60, MORE)
    assert relative(flat(backend) - before, ranks[0][kind][f"{optimizer} went on"]) < 1e-4


def test_the_files_are_the_plain_ones(here: Here) -> None:
    folder = here[0]
    names = {path.name for path in (folder / "plain-adamw").iterdir()}
    for kind in here[2][0]:
        assert {path.name for path in (folder / f"{kind}-adamw").iterdir()} == names
    assert set(unpack(pack(model_state(tiny_model()), VERSION)))
