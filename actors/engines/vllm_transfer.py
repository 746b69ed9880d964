"""The receiving end of the direct transports, in the rollout worker: what a learner rank says is
passed on to vLLM's worker processes.

Owns the order of these calls as vLLM wants it. What they do in each process is
`manta.actors.engines.vllm_worker`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manta.actors.engines.vllm_arrivals import TransferInfo, plain
from manta.actors.engines.vllm_weights import first_other, on_every_worker
from manta.actors.transports.patience import patience

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class VllmTransfer:
    """Transfers to all worker processes of `llm`, one after the other."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._seconds = patience(0)

    async def open(self, info: TransferInfo) -> None:
        """Meets the learner's ranks; returns once they are all there."""
        await on_every_worker(self._llm, "init_weight_transfer_engine", dict(info))

    async def begin(self, num_bytes: int) -> None:
        self._seconds = patience(num_bytes)
        await on_every_worker(self._llm, "manta_begin_transfer")

    async def take(self, info: TransferInfo) -> None:
        """Returns once the part that `info` describes has arrived and is loaded."""
        await on_every_worker(self._llm, "manta_take_transfer", dict(plain(info)), self._seconds)

    async def end(self, expected: str) -> str:
        """The hash that every process took, or the first one that is not `expected`."""
        hashes = await on_every_worker(self._llm, "manta_end_transfer")
        return first_other(expected, [str(each) for each in hashes])
