"""Weights on their way from the rollout worker to vLLM's own processes on the same machine.

The bytes go through a file without a name, in shared memory where there is room. Other processes of
this user reach it by way of this one, with which it is gone at the latest. These processes are
ours: they run the same code as the same user, so the file needs no signature; the hash that each
takes is the proof that what arrived is what was sent.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from manta.actors.weights import TensorSpec, Weights

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

SHARED_MEMORY = Path("/dev/shm")

DRAWN = "drawn"
"""Among a request's extra arguments: tokens that its sample had before."""

Index: TypeAlias = Sequence[tuple[str, str, Sequence[int], int, int]]
"""Name, dtype, shape, start and end of each tensor: a `TensorSpec` as it is sent to a worker."""


async def on_every_worker(llm: AsyncLLM, method: str, *arguments: object) -> list[object]:
    """What `method` returns on each worker process, of all data-parallel copies.

    vLLM's own `collective_rpc` calls all copies and returns the first one's answers only.
    """
    calls = llm.engine_core.call_utility_all_async("collective_rpc", method, None, arguments, None)
    return [answer for copy in await calls for answer in copy]


async def deliver(llm: AsyncLLM, weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Loads `weights` on every worker process; the hash that they took of the bytes, or the first
    one that is not `weights.sha256`, and then nothing is loaded.

    Raises ValueError where names or shapes are not `shapes`.
    """
    with _file(weights) as path:
        index = _index(weights.specs)
        hashes = await on_every_worker(llm, "manta_hash", path, index)
        found = first_other(weights.sha256, [str(each) for each in hashes])
        if found == weights.sha256:
            check_shapes(weights, shapes)
            await on_every_worker(llm, "manta_load", path, index)
        return found


def first_other(expected: str, found: Sequence[str]) -> str:
    """The first of `found` that is not `expected`; `expected` where there is none."""
    return next((each for each in found if each != expected), expected)


def _index(specs: Iterable[TensorSpec]) -> Index:
    return [(s.name, s.dtype, list(s.shape), s.start, s.end) for s in specs]


def check_shapes(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError where names or shapes of `weights` are not `shapes`."""
    given = {spec.name: spec.shape for spec in weights.specs}
    if given != shapes:
        differing = sorted(n for n in {*given, *shapes} if given.get(n) != shapes.get(n))
        raise ValueError(
            f"weights {weights.version} do not fit the engine's model at {differing[:5]} "
            f"({len(differing)} in all): learner and engine must build the same model"
        )


@contextmanager
def _file(weights: Weights) -> Iterator[str]:
    """A path to the bytes. A file with a name would outlive a process that is killed meanwhile,
    with all the memory that the model takes."""
    with tempfile.TemporaryFile(dir=folder_for(len(weights.data))) as file:
        file.write(weights.data.data)
        file.flush()
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def folder_for(size: int) -> Path:
    """Where `size` bytes fit: shared memory, or else the folder of temporary files."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size:
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())
