"""vLLM with an adapter over its weights, and with weights that learner ranks send themselves: one
vLLM for both, since starting one takes long."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytest_asyncio
import torch
from torch import Tensor, nn

from manta.actors.engines.occupancy import Occupancy
from manta.actors.engines.residence import WrongState
from manta.actors.engines.settings import EngineSettings, VllmSettings
from manta.actors.models.adapter import adapter_shapes
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.policy import token_logprobs
from manta.actors.models.spec import LoraSpec
from manta.actors.weight_tensors import pack
from manta.actors.weights import Receipt, Weights
from manta.envs.records import Completion, Float32, GenerateRequest, Int32, Sampling, WeightVersion
from tests.loop_calls import send
from tests.vllm_here import CONTEXT, MODEL, NEEDS_VLLM, VOCAB, devices

if TYPE_CHECKING:
    from manta.actors.engines.vllm_engine import VllmEngine

pytestmark = [NEEDS_VLLM, pytest.mark.asyncio(loop_scope="module")]

LORA = LoraSpec(rank=4, alpha=6.0, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
ROWS = [np.random.default_rng(0).integers(0, VOCAB, n, dtype=np.int32) for n in (2, 9, 300)]
NOWHERE = ("", 0)
CLOSE = 1e-5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def over(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Callable[[bool], VllmEngine]]:
    """Makes engines (do they keep keys and values?) over the one vLLM, one at a time."""
    from manta.actors.engines.vllm_engine import VllmEngine
    from manta.actors.engines.vllm_folder import served_model
    from manta.actors.engines.vllm_start import start
    from tests.unit.actors.engines.spool_transfer import SPOOL, SpoolExtension, SpoolTrainer

    SpoolTrainer.folder = tmp_path_factory.mktemp("spool")
    name = f"{SpoolExtension.__module__}.{SpoolExtension.__qualname__}"
    own = VllmSettings(options={"worker_extension_cls": name})
    settings = EngineSettings(
        engine="vllm",
        placement="colocated",  # so that it can sleep
        threads=1,
        devices=devices(),
        max_rows=3,
        vllm=own,
    )
    spec = replace(MODEL, lora=LORA)
    served = served_model(spec, VOCAB, 0, tmp_path_factory.mktemp("model"))
    held = [start(settings, spec, served, SPOOL)]

    def engine(keeps_kv: bool) -> VllmEngine:
        with_kv = replace(settings, kv_on_publish="keep" if keeps_kv else "recompute")
        occupancy = Occupancy(settings.max_rows)
        return VllmEngine(held[0], served, with_kv, CONTEXT, WeightVersion(0, 0), occupancy)

    yield engine
    await engine(False).end_processes()
    held.clear()
    gc.collect()  # while the interpreter is whole: vLLM's destructor needs it


@pytest_asyncio.fixture(loop_scope="module")
async def engine(over: Callable[[bool], VllmEngine]) -> VllmEngine:
    """With the weights of `base` and no adapter."""
    new = over(False)
    await publish(new, pack(model_state(base()), WeightVersion(0, 0)))
    return new


@pytest_asyncio.fixture(loop_scope="module")
async def keeping(over: Callable[[bool], VllmEngine]) -> VllmEngine:
    """As `engine`, with `kv_on_publish: keep`."""
    new = over(True)
    await publish(new, pack(model_state(base()), WeightVersion(0, 0)))
    return new


def base() -> nn.Module:
    """The initial model, made uneven: as it is built, its outputs are nearly uniform."""
    model = build_model(MODEL, VOCAB, 0)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def adapter(seed: int, lora: LoraSpec = LORA) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(t.shape) for name, t in model_state(base()).items()}
    return {
        name: 0.2 * torch.randn(shape, generator=generator)
        for name, shape in adapter_shapes(lora, shapes).items()
    }


def merged(state: Mapping[str, Tensor]) -> nn.Module:
    """The model with W + alpha / rank * B A in place of each W."""
    model = base()
    own = model_state(model)
    for name, low in state.items():
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if module != name.removeprefix("base_model.model."):
            high = state[name.replace("lora_A", "lora_B")]
            own[f"{module}.weight"].add_(LORA.alpha / LORA.rank * (high @ low))
    return model


async def publish(engine: VllmEngine, weights: Weights) -> None:
    await engine.pause()
    assert await engine.load(weights) == Receipt(weights.version, weights.sha256)
    await engine.resume()


async def gap_to(engine: VllmEngine, model: nn.Module) -> float:
    """Largest |engine - transformers| over the log-probs of `ROWS`."""
    pairs = zip(await engine.logprobs(ROWS), token_logprobs(model, ROWS), strict=True)
    return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)


async def test_an_adapter_is_the_merged_weights_and_the_next_one_takes_its_place(
    engine: VllmEngine,
) -> None:
    assert await gap_to(engine, base()) < CLOSE
    for seed in (1, 2, 3):
        state = adapter(seed)
        await publish(engine, pack(state, WeightVersion(seed, 0)))
        assert await gap_to(engine, merged(state)) < CLOSE
        assert await gap_to(engine, base()) > 0.1
        assert len(await engine._llm.list_loras()) == 1
    await publish(engine, pack(model_state(base()), WeightVersion(4, 0)))
    assert await gap_to(engine, base()) < CLOSE, "whole weights take the adapter's place"


async def test_whoever_slept_takes_whole_weights_before_an_adapter(engine: VllmEngine) -> None:
    await publish(engine, pack(adapter(1), WeightVersion(1, 0)))
    state = adapter(2)
    wanted, whole = pack(state, WeightVersion(2, 0)), pack(model_state(base()), WeightVersion(2, 0))
    await engine.pause()
    await engine.sleep()
    await engine.wake()
    with pytest.raises(WrongState, match=r"adapt\(\) while empty: .* with whole ones first"):
        await engine.load(wanted)
    with pytest.raises(WrongState, match="resume"):
        await engine.resume()
    assert engine.version == WeightVersion(1, 0)
    assert (await engine.load(whole)).sha256 == whole.sha256
    assert await gap_to(engine, base()) < CLOSE, "the adapter of before is gone"
    await publish(engine, wanted)
    assert await gap_to(engine, merged(state)) < CLOSE


async def test_whoever_slept_wakes_to_a_transfer_and_serves_what_was_sent(
    engine: VllmEngine,
) -> None:
    from manta.actors.transports.direct import DirectSender
    from tests.unit.actors.engines.spool_transfer import SpoolTrainer

    sender = DirectSender("ipc", 0, torch.device("cpu"), SpoolTrainer.trainer_init)
    model = merged(adapter(5))
    weights = pack(model_state(model), WeightVersion(5, 0))
    await engine.pause()
    await engine.sleep()
    with pytest.raises(WrongState, match=r"load\(\) while asleep: .* call wake"):
        await engine.begin_transfer(len(weights.data))
    await engine.wake()
    assert await send(sender, engine, weights, NOWHERE) == Receipt(weights.version, weights.sha256)
    await engine.resume()
    assert await gap_to(engine, model) < CLOSE


async def over_a_publish(
    engine: VllmEngine, prefix: Int32, sampling: Sampling
) -> list[tuple[Completion, list[Float32]]]:
    """Samples that begin under the first adapter and end under the second, each with the exact
    log-probs of its tokens under either."""
    versions = [WeightVersion(step, 0) for step in (1, 2)]
    models = [merged(adapter(step)) for step in (1, 2)]
    await publish(engine, pack(adapter(1), versions[0]))
    wanted = GenerateRequest(prefix, (1, 2), (400, 400), sampling)
    under_way = asyncio.ensure_future(engine.generate([wanted]))
    await engine.generate([GenerateRequest(prefix[:1], (3,), (80,), sampling)])
    await publish(engine, pack(adapter(2), versions[1]))
    [out] = await under_way
    for completion in out:
        spans = completion.weight_versions
        assert [span.version for span in spans] == versions
        assert spans[0].start == 0
        assert 0 < spans[1].start < 400
    return [(c, [logprobs_of(m, prefix, c, sampling.temperature) for m in models]) for c in out]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_samples_run_on_over_a_publish_and_each_token_has_its_version_s_logprob(
    engine: VllmEngine, temperature: float
) -> None:
    prefix = np.arange(5, dtype=np.int32)
    sampling = Sampling(temperature=temperature)
    for completion, (first, second) in await over_a_publish(engine, prefix, sampling):
        border = completion.weight_versions[1].start
        found = completion.logprobs
        np.testing.assert_allclose(found[:border], first[:border], CLOSE, CLOSE)
        np.testing.assert_allclose(found[border:], second[border:], CLOSE, CLOSE)
        assert np.abs(found[:border] - second[:border]).max() > 0.1
        assert np.abs(found[border:] - first[border:]).max() > 0.1


async def test_kept_keys_and_values_serve_on_under_the_next_adapter(keeping: VllmEngine) -> None:
    prefix = np.tile(np.arange(20, dtype=np.int32), 4)
    for completion, (first, second) in await over_a_publish(keeping, prefix, Sampling()):
        border = completion.weight_versions[1].start
        np.testing.assert_allclose(completion.logprobs[:border], first[:border], CLOSE, CLOSE)
        gap = np.abs(completion.logprobs[border:] - second[border:]).max()
        assert gap > 1e-3, "keys and values were computed anew"
    assert await gap_to(keeping, merged(adapter(2))) < CLOSE, "nobody else meets the old ones"


def logprobs_of(
    model: nn.Module, prefix: Int32, completion: Completion, temperature: float
) -> Float32:
    tokens = torch.tensor([[*prefix.tolist(), *completion.token_ids.tolist()]])
    with torch.inference_mode():
        logits_LV = model(input_ids=tokens).logits[0, len(prefix) - 1 : -1].float()
    logprobs_LV = torch.log_softmax(logits_LV / temperature, dim=-1)
    found: Float32 = logprobs_LV.gather(-1, tokens[0, len(prefix) :, None])[:, 0].numpy()
    return found


async def test_bytes_that_are_not_as_promised_are_refused_and_the_adapter_stays(
    engine: VllmEngine,
) -> None:
    good, state = pack(adapter(1), WeightVersion(1, 0)), adapter(1)
    await publish(engine, good)
    other = pack(adapter(2), WeightVersion(2, 0))
    data = other.data.copy()
    data[-1] ^= 1
    await engine.pause()
    receipt = await engine.load(replace(other, data=data))
    assert receipt.sha256 not in (other.sha256, good.sha256)
    assert await gap_to(engine, merged(state)) < CLOSE
    assert engine.version == good.version
    await engine.resume()


async def test_an_adapter_of_another_form_is_refused_by_name(engine: VllmEngine) -> None:
    await engine.pause()
    others = [replace(LORA, rank=8), replace(LORA, targets=("q_proj",))]
    for lora in others:
        with pytest.raises(ValueError, match="do not fit the engine's model at"):
            await engine.load(pack(adapter(1, lora), WeightVersion(1, 0)))
    assert await gap_to(engine, base()) < CLOSE
    await engine.resume()


async def test_weights_that_a_rank_sends_are_hashed_on_arrival_and_served(
    engine: VllmEngine,
) -> None:
    from manta.actors.transports.direct import DirectSender
    from tests.unit.actors.engines.spool_transfer import SpoolTrainer

    sender = DirectSender("nccl", 0, torch.device("cpu"), SpoolTrainer.trainer_init)
    for step in (1, 2):
        model = merged(adapter(step))
        weights = pack(model_state(model), WeightVersion(step, 0))
        await engine.pause()
        receipt = await send(sender, engine, weights, NOWHERE)
        assert receipt == Receipt(weights.version, weights.sha256)
        assert await gap_to(engine, model) < CLOSE
        await engine.resume()
        assert engine.version == weights.version


async def test_other_bytes_than_promised_show_in_the_receipt_of_a_transfer(
    engine: VllmEngine,
) -> None:
    from manta.actors.transports.direct import DirectSender
    from tests.unit.actors.engines.spool_transfer import SpoolTrainer

    sender = DirectSender("nccl", 0, torch.device("cpu"), SpoolTrainer.trainer_init)
    good = pack(model_state(merged(adapter(3))), WeightVersion(3, 0))
    data = good.data.copy()
    data[-1] ^= 1
    await engine.pause()
    receipt = await send(sender, engine, replace(good, data=data), NOWHERE)
    assert receipt is not None
    assert receipt.sha256 != good.sha256
    assert engine.version != good.version
    await engine.resume()


async def test_after_a_transfer_that_broke_off_weights_come_through_the_store(
    engine: VllmEngine,
) -> None:
    from manta.actors.transports.direct import DirectSender
    from tests.unit.actors.engines.spool_transfer import SpoolTrainer

    sender = DirectSender("nccl", 0, torch.device("cpu"), SpoolTrainer.trainer_init)
    model = merged(adapter(4))
    weights = pack(model_state(model), WeightVersion(4, 0))
    await engine.pause()
    SpoolTrainer.breaks = True
    with pytest.raises(RuntimeError, match="the wire broke"):
        await send(sender, engine, pack(model_state(base()), WeightVersion(3, 0)), NOWHERE)
    assert (await engine.load(weights)).sha256 == weights.sha256
    assert await gap_to(engine, model) < CLOSE
    await engine.resume()
    assert len(ROWS[-1]) < CONTEXT
