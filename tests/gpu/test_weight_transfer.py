"""Weights from this process, as a learner rank, into vLLM's worker process, from GPU to GPU."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio
import torch
from torch import nn

from manta.actors.engines.settings import EngineSettings, VllmSettings
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.policy import token_logprobs
from manta.actors.weight_tensors import pack
from manta.actors.weights import Receipt
from manta.envs.records import WeightVersion
from tests.loop_calls import send
from tests.vllm_here import MODEL, NEEDS_VLLM, VOCAB

if TYPE_CHECKING:
    from manta.actors.engines.vllm_engine import VllmEngine
    from manta.actors.transports.direct import DirectSender

pytestmark = [pytest.mark.gpu, NEEDS_VLLM, pytest.mark.asyncio(loop_scope="module")]

ROWS = [np.random.default_rng(0).integers(0, VOCAB, n, dtype=np.int32) for n in (5, 40)]
CLOSE = 1e-3
"""float32 on a GPU, whose products round otherwise than a CPU's."""


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["ipc", "nccl"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[tuple[DirectSender, VllmEngine]]:
    """The sender on GPU 0; the engine on the same one (ipc) or on GPU 1 (nccl)."""
    from manta.actors.engines.occupancy import Occupancy
    from manta.actors.engines.vllm_engine import start_engine
    from manta.actors.transports.direct import DirectSender

    name: str = request.param
    if name == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("nccl joins processes on different GPUs: needs two")
    settings = EngineSettings(
        engine="vllm", devices=1, max_rows=3, vllm=VllmSettings(kv_cache_gib=0.5)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0" if name == "ipc" else "1")
        occupancy = Occupancy(settings.max_rows)
        engine = start_engine(settings, MODEL, VOCAB, 0, WeightVersion(0, 0), occupancy, name)
    sender = DirectSender(name, 0, torch.device("cuda", 0))
    yield sender, engine
    sender.close()
    await engine.end_processes()


def noisy(seed: int) -> nn.Module:
    model = build_model(MODEL, VOCAB, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def free_address() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1", probe.getsockname()[1]


async def test_weights_arrive_as_they_were_sent_and_are_served(
    ends: tuple[DirectSender, VllmEngine],
) -> None:
    sender, engine = ends
    for step in (1, 2):
        model = noisy(step)
        weights = pack(model_state(model), WeightVersion(step, 0))
        await engine.pause()
        assert await send(sender, engine, weights, free_address()) == Receipt(
            weights.version, weights.sha256
        )
        found = await engine.logprobs(ROWS)
        await engine.resume()
        for mine, expected in zip(found, token_logprobs(model, ROWS), strict=True):
            np.testing.assert_allclose(mine, expected, atol=CLOSE)
        assert engine.version == weights.version


async def test_other_bytes_than_promised_show_in_the_receipt(
    ends: tuple[DirectSender, VllmEngine],
) -> None:
    sender, engine = ends
    good = pack(model_state(noisy(3)), WeightVersion(3, 0))
    data = good.data.copy()
    data[-1] ^= 1
    await engine.pause()
    receipt = await send(sender, engine, replace(good, data=data), free_address())
    assert receipt is not None
    assert receipt.sha256 != good.sha256
    assert engine.version != good.version
    assert await send(sender, engine, good, free_address()) == Receipt(good.version, good.sha256)
    await engine.resume()


async def test_after_a_transfer_that_broke_off_weights_come_through_the_store(
    ends: tuple[DirectSender, VllmEngine],
) -> None:
    _, engine = ends
    weights = pack(model_state(noisy(4)), WeightVersion(4, 0))
    await engine.pause()
    await engine.begin_transfer(len(weights.data))
    assert (await engine.load(weights)).sha256 == weights.sha256
    found = await engine.logprobs(ROWS)
    await engine.resume()
    for mine, expected in zip(found, token_logprobs(noisy(4), ROWS), strict=True):
        np.testing.assert_allclose(mine, expected, atol=CLOSE)
