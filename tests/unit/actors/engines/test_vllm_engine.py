"""The vLLM engine against transformers: log-probs, publishes in flight, kept keys and values."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from manta.actors.engine_calls import EngineCalls
from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.engines.protocol import Engine
from manta.actors.engines.sampler import truncate
from manta.actors.engines.settings import EngineSettings, VllmSettings
from manta.actors.engines.vllm_weights import first_other
from manta.actors.leases import Ask, Leases, Ticket
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.policy import token_logprobs
from manta.actors.row_limit import FixedLimit
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import (
    Completion,
    Float32,
    GenerateRequest,
    Sampling,
    VersionSpan,
    WeightVersion,
)
from tests.vllm_here import CONTEXT, MODEL, NEEDS_VLLM, ROWS, VOCAB, devices

if TYPE_CHECKING:
    from manta.actors.engines.vllm_engine import VllmEngine
    from tests.conftest import Started

pytestmark = [NEEDS_VLLM, pytest.mark.asyncio(loop_scope="session")]

VERSIONS = [WeightVersion(step, 0) for step in range(3)]
CLOSE = 1e-5


def noisy(seed: int) -> nn.Module:
    """Initial weights give nearly uniform outputs, whose log-probs would show little."""
    model = build_model(MODEL, VOCAB, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


MODELS = [noisy(seed) for seed in range(3)]


def weights(number: int) -> Weights:
    return pack(model_state(MODELS[number]), VERSIONS[number])


async def publish(engine: Engine, number: int) -> None:
    await engine.pause()
    new = weights(number)
    assert (await engine.load(new)).sha256 == new.sha256
    await engine.resume()


def request(
    prefix: Sequence[int], seeds: Sequence[int], budget: int, sampling: Sampling | None = None
) -> GenerateRequest:
    budgets = (budget,) * len(seeds)
    return GenerateRequest(
        np.array(prefix, np.int32), tuple(seeds), budgets, sampling or Sampling()
    )


def expected(
    number: int, prefix: Sequence[int], completion: Completion, sampling: Sampling | None = None
) -> Float32:
    """Log-probs of the completion's tokens by transformers' own forward pass, in float32."""
    sampling = sampling or Sampling()
    tokens = torch.tensor([[*prefix, *completion.token_ids.tolist()]])
    with torch.inference_mode():
        logits_LV = MODELS[number](input_ids=tokens).logits[0, len(prefix) - 1 : -1].float()
    logprobs_LV = torch.log_softmax(logits_LV / (sampling.temperature or 1.0), dim=-1)
    rows = len(logprobs_LV)
    logprobs_LV = truncate(
        logprobs_LV, torch.full((rows,), sampling.top_k), torch.full((rows,), sampling.top_p)
    )
    chosen = torch.from_numpy(completion.token_ids.astype(np.int64))[:, None]
    found: Float32 = logprobs_LV.gather(-1, chosen)[:, 0].numpy()
    return found


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(top_k=5, top_p=0.9),
        Sampling(temperature=0.0),
    ],
    ids=str,
)
async def test_logprobs_are_those_of_transformers(vllm: Engine, sampling: Sampling) -> None:
    await publish(vllm, 1)
    prefix = [1, 2, 3]
    [out] = await vllm.generate([request(prefix, range(6), 60, sampling)])
    spread = max(float(c.logprobs.std()) for c in out)
    assert spread > 0.1, "a model this even shows little"
    for completion in out:
        np.testing.assert_allclose(
            completion.logprobs, expected(1, prefix, completion, sampling), atol=CLOSE
        )


async def test_scores_are_those_of_transformers_up_to_a_whole_context(vllm: Engine) -> None:
    await publish(vllm, 1)
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, VOCAB, n, dtype=np.int32) for n in (1, 2, 33, CONTEXT)]
    for row, scores in zip(rows, await vllm.logprobs(rows), strict=True):
        whole = Completion(row[1:], scores[1:], (), "length")
        assert scores[0] == 0.0
        if len(row) > 1:
            np.testing.assert_allclose(scores[1:], expected(1, row[:1], whole), atol=CLOSE)
    with pytest.raises(ValueError, match="641 tokens"):
        await vllm.logprobs([np.zeros(CONTEXT + 1, np.int32)])


async def test_an_exported_checkpoint_is_served_as_the_learner_computes_it(
    started_vllm: Started,
) -> None:
    """vLLM started on the folder that `manta export` wrote, and nothing was loaded since."""
    wanted = token_logprobs(started_vllm.model, ROWS)
    assert max(float(each[1:].std()) for each in wanted) > 0.5, "a model this even shows little"
    for found, expected in zip(started_vllm.found, wanted, strict=True):
        np.testing.assert_allclose(found, expected, atol=CLOSE)


async def in_flight(engine: Engine, prefix: list[int], sampling: Sampling) -> list[Completion]:
    """Samples of 500 tokens that begin under version 0 and meet 1 and 2 on the way."""
    await publish(engine, 0)
    wanted = request(prefix, [1, 2], 500, sampling)  # of three rows
    under_way = asyncio.ensure_future(engine.generate([wanted]))
    for number in (1, 2):
        await engine.generate([request([number], [0], 80)])
        await publish(engine, number)
    [out] = await under_way
    return out


def parts(completion: Completion) -> list[tuple[int, slice]]:
    """(version number, its tokens) of a completion that met all versions."""
    spans = completion.weight_versions
    assert [span.version for span in spans] == VERSIONS
    starts = [span.start for span in spans]
    assert starts == sorted({0, *starts})
    return [
        (VERSIONS.index(span.version), slice(span.start, end))
        for span, end in zip(spans, [*starts[1:], len(completion.token_ids)], strict=True)
    ]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8)], ids=str)
async def test_every_token_has_the_logprob_of_the_version_it_carries(
    vllm: Engine, sampling: Sampling
) -> None:
    prefix = [4, 5, 6]
    out = await in_flight(vllm, prefix, sampling)
    for completion in out:
        assert len(completion.token_ids) == 500
        for number, part in parts(completion):
            others = [n for n in range(3) if n != number]
            found = completion.logprobs[part]
            exact = expected(number, prefix, completion, sampling)[part]
            np.testing.assert_allclose(found, exact, atol=CLOSE)
            for other in others:
                wrong = expected(other, prefix, completion, sampling)[part]
                assert np.abs(found - wrong).max() > 0.1


async def test_kept_keys_and_values_serve_on_and_meet_no_new_sample(keeping_vllm: Engine) -> None:
    prefix = list(range(20)) * 4
    for completion in await in_flight(keeping_vllm, prefix, Sampling()):
        first, *later = parts(completion)
        gaps = [
            np.abs(completion.logprobs[part] - expected(number, prefix, completion)[part]).max()
            for number, part in (first, *later)
        ]
        assert gaps[0] < CLOSE
        assert min(gaps[1:]) > 1e-3, "keys and values were computed anew"
    [[fresh]] = await keeping_vllm.generate([request(prefix, [9], 20)])
    np.testing.assert_allclose(fresh.logprobs, expected(2, prefix, fresh), atol=CLOSE)
    assert fresh.weight_versions == (VersionSpan(0, VERSIONS[2]),)


async def test_a_seed_means_what_it_means_to_the_embedded_engine(vllm: Engine) -> None:
    """Where vLLM runs on a CPU: on a GPU its own sampler draws."""
    if devices():
        pytest.skip("vLLM is for GPUs here")
    await publish(vllm, 1)
    embedded = EmbeddedEngine(noisy(1), CONTEXT, 8, 1, False, VERSIONS[1])
    for sampling in (Sampling(), Sampling(temperature=0.7, top_k=6), Sampling(top_p=0.9)):
        wanted = [request([1, 2, 3], [1, 2**40, 3], 40, sampling)]
        for one, other in zip(
            (await vllm.generate(wanted))[0], (await embedded.generate(wanted))[0], strict=True
        ):
            assert np.array_equal(one.token_ids, other.token_ids)
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=CLOSE)
    embedded.close()


async def test_weights_of_another_model_are_refused_by_name(vllm: Engine) -> None:
    state = model_state(MODELS[1])
    state["model.norm.weight"] = state["model.norm.weight"][:-1]
    await vllm.pause()
    with pytest.raises(
        ValueError, match=r"do not fit the engine's model at \['model.norm.weight'\]"
    ):
        await vllm.load(pack(state, VERSIONS[1]))
    await vllm.resume()
    [[completion]] = await vllm.generate([request([1], [1], 3)])
    assert completion.weight_versions == (VersionSpan(0, VERSIONS[0]),)


async def test_the_environment_is_as_it_was_before_vllm_started(vllm: Engine) -> None:
    names = ("LD_PRELOAD", "VLLM_WORKER_MULTIPROC_METHOD", "TORCHDYNAMO_DISABLE")
    assert [name for name in names if name in os.environ] == []


async def test_one_model_on_a_cpu_takes_one_process_beside_this_one(vllm: VllmEngine) -> None:
    from manta.actors.engines.vllm_weights import on_every_worker

    if devices():
        pytest.skip("needs a machine without GPUs")
    [[core]] = await on_every_worker(vllm._llm, "manta_processes", os.getpid())  # type: ignore[misc]
    assert psutil.Process(core).ppid() == os.getpid()
    assert not psutil.Process(core).children()


@pytest.mark.parametrize(
    ("settings", "executor"),
    [
        (EngineSettings(engine="vllm"), "UniProcExecutor"),
        (EngineSettings(engine="vllm", devices=1), "mp"),
        (EngineSettings(engine="vllm", vllm=VllmSettings(tensor_parallel=2)), "mp"),
        (EngineSettings(engine="vllm", vllm=VllmSettings(data_parallel=2)), "mp"),
    ],
)
async def test_several_parts_of_a_model_or_gpus_have_processes_of_their_own(
    settings: EngineSettings, executor: str
) -> None:
    from manta.actors.engines.vllm_folder import ServedModel
    from manta.actors.engines.vllm_start import engine_arguments

    served = ServedModel("folder", {}, None, None, None)
    found = engine_arguments(settings, MODEL, served)["distributed_executor_backend"]
    assert str(found).rpartition(".")[2] == executor


async def test_one_worker_s_other_hash_is_what_the_receipt_shows() -> None:
    assert first_other("a", ["a", "a"]) == "a"
    assert first_other("a", ["a", "b", "a", "c"]) == "b"


def mixed(*budgets: int) -> GenerateRequest:
    return GenerateRequest(np.array([1], np.int32), tuple(range(len(budgets))), budgets, Sampling())


async def test_ended_samples_make_room_in_the_router_while_their_call_goes_on(
    vllm: Engine,
) -> None:
    calls, leases = EngineCalls(vllm), Leases(lambda: FixedLimit(3))
    leases.tell("policy-0", "join")
    leases.tell("policy-0", "serve")
    first, second = Ticket("w", 1), Ticket("w", 2)
    leases.ask(Ask(first, (0,), rows=3, tokens=600))
    leases.ask(Ask(second, (1,), rows=2, tokens=40))
    assert [lease.ticket for lease in leases.grant()] == [first]
    long = asyncio.ensure_future(calls.generate(first, [mixed(600, 5, 5)]))
    granted: list[Ticket] = []
    while not granted:
        assert not long.done(), "no room was made before the longest sample ended"
        await asyncio.sleep(0.005)
        leases.shrink(calls.unfinished())
        granted = [lease.ticket for lease in leases.grant()]
    assert granted == [second]
    short = await calls.generate(second, [mixed(20, 20)])
    assert short.lengths.tolist() == [20, 20]
    assert not long.done()
    assert (await long).lengths.tolist() == [600, 5, 5]


async def test_rows_that_hold_no_sample_count_as_idle(vllm: VllmEngine) -> None:
    occupancy = vllm._occupancy
    await vllm.generate([mixed(5)])
    occupancy.take()  # what came before, loading included
    await vllm.generate([mixed(600, 5, 5)])
    one_of_three = occupancy.take()
    assert 0.3 < one_of_three.busy / one_of_three.total < 0.6
    await vllm.generate([mixed(*[200] * 6)])
    full = occupancy.take()
    assert 0.8 < full.busy / full.total <= 1.0, "six samples keep three rows busy, and no more"
    under_way = asyncio.ensure_future(vllm.generate([mixed(300, 300, 300)]))
    await vllm.generate([request([7], [1], 1)])
    await vllm.pause()
    occupancy.take()
    await asyncio.sleep(0.05)
    assert occupancy.take().busy == 0.0, "a paused engine decodes nothing"
    await vllm.resume()
    await under_way
    occupancy.take()
    wanted = replace(mixed(600, 5, 600), enough=1)
    await vllm.generate([wanted])
    occupancy.take()
    await asyncio.sleep(0.05)
    assert occupancy.take().busy == 0.0, "samples that were cut hold no rows"
