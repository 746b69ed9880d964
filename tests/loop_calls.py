"""A learner rank's calls to one engine of this process, from the thread in which it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from manta.actors.weights import Receipt, Weights

if TYPE_CHECKING:
    from manta.actors.engines.protocol import TakesTransfers
    from manta.actors.transports.direct import DirectSender

T = TypeVar("T")


class LoopCalls:
    """vLLM's `VLLMWeightSyncClient`, as `manta.actors.meeting.MeetingCalls` is over Ray."""

    def __init__(
        self, engine: TakesTransfers, loop: asyncio.AbstractEventLoop, weights: Weights
    ) -> None:
        self._engine, self._loop, self._weights = engine, loop, weights
        self.receipt: Receipt | None = None

    def init_weight_transfer_engine(self, init_info: Mapping[str, object]) -> None:
        self._wait(self._engine.open_transfer(init_info))

    def start_weight_update(self) -> None:
        self._wait(self._engine.begin_transfer(len(self._weights.data)))

    def update_weights(self, update_info: Mapping[str, object]) -> None:
        self._wait(self._engine.take_transfer(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        end = self._engine.end_transfer(self._weights.version, self._weights.sha256)
        self.receipt = self._wait(end)

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


async def send(
    sender: DirectSender, engine: TakesTransfers, weights: Weights, address: tuple[str, int]
) -> Receipt | None:
    """Sends from a thread to `engine`, whose one worker process receives; its receipt."""
    calls = LoopCalls(engine, asyncio.get_running_loop(), weights)
    await asyncio.to_thread(sender.send, weights, calls, ["engine"], 1, lambda: address)
    return calls.receipt
