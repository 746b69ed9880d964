"""The embedded engine against plain transformers: the same numbers, by another way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.engines.occupancy import Occupancy
from manta.actors.engines.sampler import truncate
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import Completion, GenerateRequest, Sampling, WeightVersion

VOCAB = 31
CONTEXT = 300
FIRST, SECOND, THIRD = (WeightVersion(step, 0) for step in range(3))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only lose by more, and badly where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spec(architecture: str = "qwen2", tie: bool = True) -> ModelSpec:
    sizes = BuildSpec(
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        mlp_width=64,
        architecture=architecture,  # type: ignore[arg-type]
        tie_embeddings=tie,
    )
    return ModelSpec(build=sizes, context=CONTEXT)


def sharp(model: nn.Module) -> nn.Module:
    """Larger weights, so that distributions are far from uniform and an error shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return model


def model_of(seed: int, architecture: str = "qwen2") -> nn.Module:
    return sharp(build_model(spec(architecture), VOCAB, seed))


def weights(seed: int, version: WeightVersion) -> Weights:
    return pack(model_state(model_of(seed)), version)


def engine_of(
    model: nn.Module, max_rows: int = 16, is_deterministic: bool = False
) -> EmbeddedEngine:
    return EmbeddedEngine(model, CONTEXT, max_rows, 1, is_deterministic, FIRST)


@pytest.fixture
def engine() -> Iterator[EmbeddedEngine]:
    made = engine_of(model_of(0))
    yield made
    made.close()


def request(
    prefix: Sequence[int],
    seeds: Sequence[int],
    budget: int | Sequence[int] = 12,
    sampling: Sampling | None = None,
) -> GenerateRequest:
    budgets = (budget,) * len(seeds) if isinstance(budget, int) else tuple(budget)
    return GenerateRequest(
        np.array(prefix, np.int32), tuple(seeds), budgets, sampling or Sampling()
    )


def mixed_requests(count: int, sampling: Sampling | None = None) -> list[GenerateRequest]:
    """Prefixes of 1 to 40 tokens, two to five samples each, budgets of 1 to 60 tokens."""
    random = np.random.default_rng(7)
    return [
        request(
            random.integers(0, VOCAB, random.integers(1, 41)).tolist(),
            random.integers(0, 2**62, samples).tolist(),
            random.integers(1, 61, samples).tolist(),
            sampling,
        )
        for samples in random.integers(2, 6, count)
    ]


@torch.no_grad()
def plain_logprobs(
    model: nn.Module, prefix: np.ndarray, completion: Completion, sampling: Sampling
) -> Tensor:
    """float32[T] of one full forward pass, without cache, padding or batch."""
    row = torch.from_numpy(np.concatenate([prefix, completion.token_ids])).long()
    logits = model(input_ids=row[None], use_cache=False).logits[0, len(prefix) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), dim=-1)
    if sampling.temperature:
        rows = len(logprobs)
        logprobs = truncate(
            logprobs, torch.full((rows,), sampling.top_k), torch.full((rows,), sampling.top_p)
        )
    return logprobs.gather(1, row[len(prefix) :, None])[:, 0]


def assert_plain(
    model: nn.Module, requests: Sequence[GenerateRequest], out: Sequence[Sequence[Completion]]
) -> None:
    for asked, group in zip(requests, out, strict=True):
        for completion in group:
            want = plain_logprobs(model, asked.prefix, completion, asked.sampling)
            torch.testing.assert_close(
                torch.from_numpy(completion.logprobs), want, atol=1e-5, rtol=0.0
            )


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=7),
        Sampling(top_p=0.8),
        Sampling(temperature=0.7, top_p=0.9, top_k=11),
        Sampling(temperature=0.0),
    ],
)
async def test_logprobs_equal_a_plain_forward_pass(architecture: str, sampling: Sampling) -> None:
    model = model_of(0, architecture)
    engine = engine_of(model_of(0, architecture))
    requests = mixed_requests(8, sampling)
    assert_plain(model, requests, await engine.generate(requests))
    engine.close()


async def test_rows_of_one_batch_keep_their_own_sampling(engine: EmbeddedEngine) -> None:
    kinds = [
        Sampling(),
        Sampling(temperature=0.0),
        Sampling(temperature=0.5, top_k=3, stop_token_ids=(1, 2)),
        Sampling(top_p=0.6, stop_token_ids=(5,)),
    ]
    requests = [request([1, 2, 3], [10, 11], 40, kind) for kind in kinds]
    together = await engine.generate(requests)
    assert_plain(model_of(0), requests, together)
    for asked, group in zip(requests, together, strict=True):
        [alone] = await engine.generate([asked])
        assert [c.token_ids.tolist() for c in alone] == [c.token_ids.tolist() for c in group]
        stops = asked.sampling.stop_token_ids
        for completion in group:
            assert not np.isin(completion.token_ids[:-1], stops).any()


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
async def test_greedy_equals_transformers_generate(architecture: str) -> None:
    model, engine = model_of(3, architecture), engine_of(model_of(3, architecture))
    requests = [request(range(1, 2 + i), [0], 50, Sampling(temperature=0.0)) for i in range(9)]
    out = await engine.generate(requests)
    for asked, [completion] in zip(requests, out, strict=True):
        row = torch.from_numpy(asked.prefix).long()[None]
        want = model.generate(  # type: ignore[operator]
            input_ids=row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=50,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.token_ids.tolist() == want[0, row.shape[1] :].tolist()
    engine.close()


async def test_tokens_do_not_depend_on_the_batch() -> None:
    requests = mixed_requests(10)
    outs = []
    for max_rows in (1, 7, 64):
        engine = engine_of(model_of(0), max_rows)
        outs.append(await engine.generate(requests))
        engine.close()
    for group, *others in zip(*outs, strict=True):
        for other in others:
            for one, two in zip(group, other, strict=True):
                assert one.token_ids.tolist() == two.token_ids.tolist()
                np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-5)


async def test_samples_follow_the_models_distribution(engine: EmbeddedEngine) -> None:
    prefix, count = [4, 9, 2], 4000
    requests = [request(prefix, range(i, i + 50), 2) for i in range(0, count, 50)]
    out = await engine.generate(requests)
    model = model_of(0)
    first = torch.tensor([c.token_ids[0] for group in out for c in group])
    with torch.no_grad():
        wanted = torch.softmax(model(input_ids=torch.tensor([prefix])).logits[0, -1], -1) * count
    is_common = wanted >= 5
    seen = first.bincount(minlength=VOCAB)[is_common].double()
    chi_square = float(((seen - wanted[is_common]) ** 2 / wanted[is_common]).sum())
    degrees = int(is_common.sum())
    assert degrees > 3
    # Five standard deviations above the mean of a chi-square.
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


async def test_a_prefix_runs_once_for_all_its_samples() -> None:
    model = model_of(0)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine = engine_of(model, max_rows=4)
    await engine.generate([request(range(1, 18), range(11), 3), request(range(20), [1, 2], 3)])
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert prefills == [(2, 20)]
    assert max(rows for rows, width in shapes if width == 1) == 4
    engine.close()


async def test_finished_rows_are_not_computed() -> None:
    model = model_of(0)
    rows: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    engine = engine_of(model)
    await engine.generate([request([1, 2], range(5), (1, 4, 2, 3, 6))])
    # The prefill gives the first token; then one row fewer after each budget that is reached.
    assert rows == [1, 4, 3, 2, 1, 1]
    engine.close()


async def test_it_tells_what_its_steps_and_prefills_took() -> None:
    occupancy = Occupancy(16)
    engine = EmbeddedEngine(model_of(0), CONTEXT, 16, 1, False, FIRST, occupancy)
    await engine.generate([request([1, 2], range(5), (1, 4, 2, 3, 6)), request([3], [1], 2)])
    await engine.pause()
    work = occupancy.take().work
    assert (work.rows, work.prefill_tokens) == (1 + 4 + 2 + 3 + 6 + 2, 3)
    assert work.rows_squared == sum(r * r for r in (6, 5, 3, 2, 1, 1))
    assert 0 < work.seconds <= work.row_seconds and work.prefill_seconds > 0
    engine.close()


async def test_every_token_has_the_logprob_of_the_version_it_carries() -> None:
    models = {FIRST: model_of(0), SECOND: model_of(1), THIRD: model_of(2)}
    served = model_of(0)
    passes: list[int] = []
    served.register_forward_pre_hook(lambda *_: passes.append(1))
    engine = engine_of(served)
    # Many more samples than rows, so that a load meets rows under way, prefixes run but not yet
    # started, and requests that nobody has looked at.
    requests = mixed_requests(60, Sampling(temperature=0.9))
    under_way = asyncio.ensure_future(engine.generate(requests))
    for seed, version in ((1, SECOND), (2, THIRD)):
        reached = len(passes) + 40
        while len(passes) < reached:
            await asyncio.sleep(0.001)
        await engine.pause()
        await engine.load(weights(seed, version))
        await engine.resume()
    seen = set()
    for asked, group in zip(requests, await under_way, strict=True):
        for completion in group:
            starts = [span.start for span in completion.weight_versions]
            assert starts[0] == 0
            ends = [*starts[1:], len(completion.token_ids)]
            for (start, version), end in zip(completion.weight_versions, ends, strict=True):
                assert start < end
                seen.add((version, len(starts) > 1))
                want = plain_logprobs(models[version], asked.prefix, completion, asked.sampling)
                torch.testing.assert_close(
                    torch.from_numpy(completion.logprobs[start:end]),
                    want[start:end],
                    atol=1e-5,
                    rtol=0.0,
                )
    assert {version for version, _ in seen} == set(models)
    assert any(is_split for _, is_split in seen)
    engine.close()


async def test_kept_keys_and_values_are_those_of_the_weights_that_made_them() -> None:
    old, new = model_of(0), model_of(1)
    engine = EmbeddedEngine(model_of(0), CONTEXT, 16, 1, False, FIRST, keeps_kv=True)
    prefix = [3, 1, 4, 1, 5]
    under_way = asyncio.ensure_future(engine.generate([request(prefix, [1, 2, 3], 250)]))
    await engine.generate([request([1], [0], 40)])
    await engine.pause()
    await engine.load(weights(1, SECOND))
    await engine.resume()
    for completion in (await under_way)[0]:
        first, second = completion.weight_versions
        assert (first.version, second.version) == (FIRST, SECOND)
        row = torch.tensor([[*prefix, *completion.token_ids.tolist()]])
        # The newest token goes through the model again, under the new weights.
        kept = len(prefix) + second.start - 1
        with torch.no_grad():
            cache = old(input_ids=row[:, :kept], use_cache=True).past_key_values
            logits = new(input_ids=row[:, kept:-1], past_key_values=cache).logits[0]
            want = torch.log_softmax(logits, -1).gather(-1, row[0, kept + 1 :, None])[:, 0]
        found = torch.from_numpy(completion.logprobs[second.start :])
        torch.testing.assert_close(found, want, atol=1e-5, rtol=0.0)
        anew = plain_logprobs(new, np.array(prefix), completion, Sampling())[second.start :]
        assert (found - anew).abs().max() > 1e-3
    [[fresh]] = await engine.generate([request(prefix, [4], 20)])
    want = plain_logprobs(new, np.array(prefix), fresh, Sampling())
    torch.testing.assert_close(torch.from_numpy(fresh.logprobs), want, atol=1e-5, rtol=0.0)
    engine.close()


async def test_scores_equal_a_plain_forward_pass_whatever_the_segments(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    rows = [random.integers(0, VOCAB, n).astype(np.int32) for n in (1, 2, 30, 31, 290, 300)]
    model = model_of(0)
    for cells in (1 << 25, 40 * VOCAB):
        monkeypatch.setattr("manta.actors.engines.causal_forward._SCORED_CELLS", cells)
        for row, scored in zip(rows, await engine.logprobs(rows), strict=True):
            tokens = torch.from_numpy(row).long()
            with torch.no_grad():
                plain = torch.log_softmax(model(input_ids=tokens[None]).logits[0], -1)
            want = torch.zeros(len(row))
            want[1:] = plain[:-1].gather(1, tokens[1:, None])[:, 0]
            torch.testing.assert_close(torch.from_numpy(scored), want, atol=1e-5, rtol=0.0)


async def test_deterministic_results_are_equal_bit_for_bit_alone_and_among_others() -> None:
    requests = mixed_requests(12)
    engine = engine_of(model_of(0), max_rows=4, is_deterministic=True)
    together = await engine.generate(requests)
    reverse = await asyncio.gather(*(engine.generate([r]) for r in reversed(requests)))
    engine.close()
    fresh = engine_of(model_of(0), max_rows=4, is_deterministic=True)
    alone = (await fresh.generate(requests[5:6]))[0]
    fresh.close()
    for one, [two] in zip(together, reversed(reverse), strict=True):
        assert [c.token_ids.tobytes() for c in one] == [c.token_ids.tobytes() for c in two]
        assert [c.logprobs.tobytes() for c in one] == [c.logprobs.tobytes() for c in two]
    assert [c.logprobs.tobytes() for c in alone] == [c.logprobs.tobytes() for c in together[5]]


async def test_weights_of_another_model_are_refused_by_name(engine: EmbeddedEngine) -> None:
    await engine.pause()
    other = build_model(spec(tie=False), VOCAB, 0)
    with pytest.raises(ValueError, match=r"do not fit the engine's model at \['lm_head.weight'\]"):
        await engine.load(pack(model_state(other), SECOND))
    assert engine.version == FIRST


async def test_a_failing_step_fails_its_requests_and_spares_later_ones() -> None:
    model = model_of(0)
    engine = engine_of(model, max_rows=2)
    model.get_parameter("model.norm.weight").data.fill_(torch.nan)
    calls = [engine.generate([request([1, i], [1, 2], 5)]) for i in range(3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [FloatingPointError] * 3
    await engine.pause()
    await engine.load(weights(1, SECOND))
    await engine.resume()
    [[completion]] = await engine.generate([request([1], [1], 5)])
    assert len(completion.token_ids) == 5
    engine.close()


async def test_what_finished_before_a_failure_is_kept() -> None:
    model = model_of(0)
    calls: list[int] = []

    def fail_on_second(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no room")

    model.register_forward_pre_hook(fail_on_second)
    engine = engine_of(model)
    requests = [request([1, 2], [1, 2], 1), request([3, 4], [3], 5)]
    await engine.pause()
    waiting = [asyncio.ensure_future(engine.generate([asked])) for asked in requests]
    await asyncio.sleep(0.05)
    await engine.resume()
    short, long = await asyncio.gather(*waiting, return_exceptions=True)
    assert not isinstance(short, BaseException)
    assert [len(c.token_ids) for c in short[0]] == [1, 1]
    assert type(long) is MemoryError
    engine.close()


async def test_closing_fails_what_is_under_way(engine: EmbeddedEngine) -> None:
    under_way = asyncio.ensure_future(engine.generate([request([1], [1, 2], 290)]))
    await asyncio.sleep(0.02)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        await under_way


def test_two_event_loops_may_share_an_engine(engine: EmbeddedEngine) -> None:
    first = asyncio.run(engine.generate([request([1], [1], 5)]))
    second = asyncio.run(engine.generate([request([1], [1], 5)]))
    assert first[0][0].token_ids.tolist() == second[0][0].token_ids.tolist()


async def test_low_precision_models_are_served() -> None:
    model = build_model(spec(), VOCAB, 0).to(torch.bfloat16)
    engine = engine_of(model)
    requests = [request([1, 2, 3], [1, 2], 20)]
    out = await engine.generate(requests)
    reference = build_model(spec(), VOCAB, 0).to(torch.bfloat16).float()
    for completion in out[0]:
        want = plain_logprobs(reference, requests[0].prefix, completion, Sampling())
        assert np.abs(completion.logprobs - want.numpy()).max() < 0.05
    engine.close()
