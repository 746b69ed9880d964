"""How vLLM gives its memory back for a while, on a GPU and on a CPU.

On a GPU it is vLLM's own sleep mode, at the level that discards weights, keys and values. Its CPU
build ignores that mode, so there Manta's part of the worker empties the memory behind the same
tensors (`manta.actors.engines.vllm_worker`). Either way prompts that share a beginning share
nothing of before: the blocks that held it are gone. Whoever calls sees to it that no request runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from manta.actors.engines.vllm_weights import on_every_worker

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_DISCARD_ALL = 2


async def sleep(llm: AsyncLLM, is_on_gpu: bool) -> None:
    """Weights, keys and values are gone afterwards."""
    if is_on_gpu:
        await llm.sleep(_DISCARD_ALL)
        return
    await llm.reset_prefix_cache()
    await on_every_worker(llm, "manta_sleep")


async def wake(llm: AsyncLLM, is_on_gpu: bool) -> None:
    """There is room again; weights are to be loaded."""
    if is_on_gpu:
        await llm.wake_up()
    else:
        await on_every_worker(llm, "manta_wake")


async def held_bytes(llm: AsyncLLM) -> int:
    """Of all worker processes together."""
    found = await on_every_worker(llm, "manta_held_bytes")
    return sum(cast(list[int], found))
