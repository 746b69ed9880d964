"""The floor of the driver's work on Ray: the actor calls of a step, with nothing behind them.

As many calls as Manta's driver makes, to actors that do no more than answer: sources that return a
block of bytes (owned by the caller, as Manta's are) and a summary, a log that carries the step's
references to ranks that read each byte (a rank has rows of nearly every group), and engines that
answer the calls of a publish, one of which brings them a parcel. Runs as a command that joins the
Ray of RAY_ADDRESS and prints a JSON array: milliseconds of each step, by batch.

    python -m benchmarks.bare_calls STEPS GROUPS:BYTES...
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import ray

from manta.orchestrator.config import CALLS_PER_WORKER
from manta.orchestrator.pools import start

WARM_UP = 2
SOURCES, RANKS, ENGINES = 2, 4, 4
SUMMARY_BYTES = 1024
PARCEL_BYTES = 4096


class Source:
    @ray.method(num_returns=2)
    async def make(self, size: int) -> tuple[npt.NDArray[np.uint8], bytes]:
        return np.ones(size, np.uint8), bytes(SUMMARY_BYTES)


class Log:
    """Hands each step to all ranks and their answers back."""

    def __init__(self) -> None:
        self._work: dict[int, list[ray.ObjectRef[npt.NDArray[np.uint8]]]] = {}
        self._answers: dict[int, list[int]] = {}
        self._changed = asyncio.Condition()

    async def put(self, step: int, blocks: list[ray.ObjectRef[npt.NDArray[np.uint8]]]) -> None:
        async with self._changed:
            self._work = {step: blocks}
            self._changed.notify_all()

    async def take(self, step: int) -> list[ray.ObjectRef[npt.NDArray[np.uint8]]]:
        async with self._changed:
            await self._changed.wait_for(lambda: step in self._work)
            return self._work[step]

    async def answer(self, step: int, read: int) -> None:
        async with self._changed:
            self._answers.setdefault(step, []).append(read)
            self._changed.notify_all()

    async def result(self, step: int) -> int:
        """Bytes that all ranks read, once all have."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._answers.get(step, ())) == RANKS)
            return sum(self._answers.pop(step))

    async def parcel(self) -> bytes:
        """New weights for all engines."""
        return bytes(PARCEL_BYTES)


class Rank:
    async def run(self, log: ray.actor.ActorHandle[Log]) -> None:
        """Reads step after step."""
        step = 0
        while True:
            blocks = await log.take.remote(step)
            read = sum([int((await block).sum()) for block in blocks])
            await log.answer.remote(step, read)
            step += 1


class Engine:
    async def call(self, parcel: bytes | None = None) -> None:
        """Answers."""


class Crew:
    def __init__(self) -> None:
        self._sources = [start(Source, 0) for _ in range(SOURCES)]
        self._engines = [start(Engine, 0) for _ in range(ENGINES)]
        self._log = start(Log, 0)
        self._ranks = [start(Rank, 0) for _ in range(RANKS)]
        self._running = [rank.run.remote(self._log) for rank in self._ranks]
        self._step = 0

    async def step(self, groups: int, size: int) -> float:
        """Processor milliseconds of a step on `groups` groups of `size` bytes together, which come
        in as many blocks as Manta's do.

        Raises RuntimeError where the ranks did not read them all.
        """
        began = time.process_time()
        count = min(groups, CALLS_PER_WORKER * SOURCES)
        blocks = await asyncio.gather(
            *(self._make(i % SOURCES, size // count) for i in range(count))
        )
        await self._log.put.remote(self._step, blocks)
        read = await self._log.result.remote(self._step)
        if read != RANKS * (size // count) * count:
            raise RuntimeError(f"the ranks read {read} of {size} bytes")
        parcel = self._log.parcel.remote()
        await asyncio.gather(*(self._publish(engine, parcel) for engine in self._engines))
        self._step += 1
        return 1e3 * (time.process_time() - began)

    async def _make(self, source: int, size: int) -> ray.ObjectRef[npt.NDArray[np.uint8]]:
        made: tuple[ray.ObjectRef[npt.NDArray[np.uint8]], ray.ObjectRef[bytes]]
        made = self._sources[source].make.remote(size)
        block, summary = made
        await summary
        return block

    async def _publish(
        self, engine: ray.actor.ActorHandle[Engine], parcel: ray.ObjectRef[bytes]
    ) -> None:
        """Routing stops, the engine takes new weights and proves it, resumes, routing goes on."""
        for argument in (None, parcel, None, None):
            await engine.call.remote(argument)


async def measure(steps: int, batches: Sequence[tuple[int, int]]) -> list[list[float]]:
    """Processor milliseconds of each step that counts, by batch: (groups, bytes)."""
    crew = Crew()
    return [
        [await crew.step(groups, size) for _ in range(WARM_UP + steps)][WARM_UP:]
        for groups, size in batches
    ]


def main(arguments: Sequence[str]) -> None:
    steps, *told = arguments
    batches = [(int(groups), int(size)) for groups, _, size in (b.partition(":") for b in told)]
    ray.init(log_to_driver=False)
    try:
        print(json.dumps(asyncio.run(measure(int(steps), batches))))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
