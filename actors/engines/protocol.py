"""The engine seam: token ids in, token ids and log-probs out, weights swapped under way.

One contract test (`tests/contract/test_engine.py`) holds every engine to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from manta.actors.engines.progress import Progress
from manta.actors.weights import Receipt, Weights
from manta.envs.failures import WorldBroke
from manta.envs.records import Completion, Float32, GenerateRequest, Int32, WeightVersion


class EngineDied(WorldBroke):
    """What computes for the engine is gone for good; whoever owns the engine ends with it."""


class Engine(Protocol):
    """Generates, scores fixed tokens, and takes new weights between two decoding steps."""

    async def generate(
        self, requests: Sequence[GenerateRequest], progress: Progress | None = None
    ) -> list[list[Completion]]:
        """All samples of every request, in order. Safe to call concurrently.

        A cancelled call frees its rows at once. So do the samples of a request that has `enough`
        without them, whatever else the call is waiting for. `progress` is bound, so that what is
        sampled so far can be read, also while paused. A request with `drawn` tokens goes on as the
        one that drew them would have: same seeds and weights, same tokens, up to the rounding of
        log-probs.
        Raises ValueError where a prefix plus its budget exceeds the model's context.
        """
        ...

    async def logprobs(self, rows: Sequence[Int32]) -> list[Float32]:
        """float32[L] per row: log-prob (temperature 1) of each token after those before it.

        The first token has no predecessor and gets 0. Works while paused: the probe of a publish.
        """
        ...

    async def pause(self) -> None:
        """Returns once no decoding step is running. Requests are kept and continue on resume."""
        ...

    async def load(self, weights: Weights) -> Receipt:
        """Takes `weights` (only while paused) and hashes the bytes it was handed.

        Keeps no view of them: the next delta changes them in place.
        """
        ...

    async def resume(self) -> None: ...


@runtime_checkable
class Sleeps(Protocol):
    """An engine that can leave its device to somebody else for a while.

    `manta.actors.engines.residence` has the states. Every method there raises WrongState where it
    makes no sense.
    """

    async def sleep(self) -> None:
        """Frees weights, keys and values (only while paused). Requests are kept, as tokens with
        log-probs and versions; their keys and values are computed anew under the weights that come
        next. Those that arrive meanwhile wait, those that are cancelled go."""
        ...

    async def wake(self) -> None:
        """Takes the memory back; without weights, so that nothing but `load` makes it useful.
        Does nothing in an engine that is awake."""
        ...

    async def held_bytes(self) -> int:
        """Weights, keys and values on the device, in bytes; 0 while asleep."""
        ...


@runtime_checkable
class OwnsProcesses(Protocol):
    """An engine that computes in processes of its own."""

    async def end_processes(self) -> None:
        """Ends them; requests under way fail. Killed without it, they leave shared memory."""
        ...


@runtime_checkable
class TakesTransfers(Protocol):
    """An engine whose processes take weights from learner ranks directly (transports nccl and
    ipc). A rank calls these in this order, while the engine is paused; `open_transfer` once for
    all transfers among the same processes, `take_transfer` for each part."""

    async def open_transfer(self, info: Mapping[str, object]) -> None: ...

    async def begin_transfer(self, num_bytes: int) -> None: ...

    async def take_transfer(self, info: Mapping[str, object]) -> None: ...

    async def end_transfer(self, version: WeightVersion, sha256: str) -> Receipt:
        """The hash over all that arrived; `sha256` is what it should be."""
        ...
