"""What each learner backend costs beside the plain one, and what it does at two ranks.

One update of AdamW over the same rows, in rounds: in each round every backend takes its turn, in an
order that rotates, so that what else the machine does meets all alike. Ranks are processes over
gloo with one torch thread each; at one rank a backend shares nothing out and its bookkeeping is all
that is seen. The first update's gradient norms must agree: they are of equal weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from benchmarks.report import Figure, write
from manta.actors.backends.protocol import Backend
from manta.actors.backends.registry import build_backend
from manta.actors.backends.settings import DeepSpeedSettings, LearnerSettings
from manta.actors.micro_batches import micro_batches
from manta.actors.models.causal import build_model
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.rows import Row
from manta.algorithms.tokens import LossTerms

VOCAB = 512
ROWS = 16
TOKENS = 256
MODEL = ModelSpec(build=BuildSpec(layers=4, width=256, heads=4, mlp_width=704), context=TOKENS)
KINDS = ("plain", "fsdp", "deepspeed-0", "deepspeed-1", "deepspeed-2", "deepspeed-3")
TOLERANCE = 1e-3
"""Of gradient norms: plain adds up its squares in float64, the others in float32, which may be
3e-4 off at this size; the gradients themselves are equal."""
CLAIM = "Learner backends: time of an update over plain's at one rank, tokens per second at two"


Round: TypeAlias = dict[str, float]
"""Seconds of an update, by backend, until the slower rank is done."""


class Average:
    """-logprob, averaged over all rows' trained tokens, whichever rank has them."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, rows: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        return LossTerms(-stats["logprob"].sum() / self._tokens, {}, {})


def settings_of(kind: str) -> LearnerSettings:
    backend, _, stage = kind.partition("-")
    zero = DeepSpeedSettings(stage=int(stage or 0))  # type: ignore[arg-type]
    return LearnerSettings(backend=backend, learning_rate=1e-4, deepspeed=zero)


def some_rows() -> list[Row]:
    random = np.random.default_rng(0)
    return [
        Row(
            index,
            random.integers(0, VOCAB, TOKENS).astype(np.int32),
            np.arange(TOKENS) >= TOKENS // 8,
            None,
            None,
            {},
        )
        for index in range(ROWS)
    ]


def one_update(backend: Backend, rows: Sequence[Row], tokens: int) -> tuple[float, float]:
    """Seconds, from when all ranks are there to when the last is done; the gradient's norm."""
    dist.barrier()
    begin = time.perf_counter()
    metrics = backend.update(micro_batches(rows, 1024), ("logprob",), 1.0, Average(tokens), 1e-4)
    dist.barrier()
    return time.perf_counter() - begin, metrics["grad_norm"]


def rank_main(rank: int, world_size: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = FileStore(f"{folder}/store-{world_size}", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    rows = some_rows()
    tokens = sum(row.num_tokens for row in rows)
    mine = rows[rank::world_size]
    backends = {
        kind: build_backend(settings_of(kind), build_model(MODEL, VOCAB, 0)) for kind in KINDS
    }
    norms = {kind: one_update(backend, mine, tokens)[1] for kind, backend in backends.items()}
    found: list[Round] = []
    for index in range(rounds):
        order = KINDS[index % len(KINDS) :] + KINDS[: index % len(KINDS)]
        found.append({kind: one_update(backends[kind], mine, tokens)[0] for kind in order})
    if rank == 0:
        torch.save((norms, found), f"{folder}/{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measure(world_size: int, rounds: int) -> list[Round]:
    """Raises RuntimeError where the backends did not do the same work."""
    with TemporaryDirectory() as folder:
        start_processes(  # type: ignore[no-untyped-call]
            rank_main, args=(world_size, rounds, folder), nprocs=world_size, start_method="spawn"
        )
        norms, found = torch.load(Path(folder) / f"{world_size}.pt")
    for kind, norm in norms.items():
        if not abs(norm / norms["plain"] - 1) < TOLERANCE:
            raise RuntimeError(f"{kind} finds a gradient norm of {norm}, plain {norms['plain']}")
    return cast(list[Round], found)


def figures(rounds: Mapping[int, Sequence[Round]]) -> list[Figure]:
    tokens = ROWS * TOKENS
    found = []
    for kind in KINDS[1:]:
        pairs = [(each[kind], each["plain"]) for each in rounds[1]]
        ratio = float(np.median([own / plain for own, plain in pairs]))
        bar = 1.25 if kind != "deepspeed-3" else None
        found.append(Figure(f"{kind}: time over plain", ratio, "x", bar, 1.05, "lower", pairs))
    for kind in KINDS:
        for world_size, each in rounds.items():
            speeds = [tokens / one[kind] for one in each]
            name = f"{kind}: {world_size} rank{'s' if world_size > 1 else ''}"
            median = float(np.median(speeds))
            found.append(Figure(name, median, "tokens/s", None, None, "higher", speeds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--rounds", type=int, default=9, help="updates of each backend")
    rounds = parser.parse_args().rounds
    measured = {world_size: measure(world_size, rounds) for world_size in (1, 2)}
    write("backends", CLAIM, figures(measured), ["torch", "deepspeed", "numpy"], 2)


if __name__ == "__main__":
    main()
