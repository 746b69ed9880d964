"""What every engine promises, whatever is behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.engines.progress import Progress
from manta.actors.engines.protocol import Engine, Sleeps
from manta.actors.engines.registry import build_engine
from manta.actors.engines.residence import WrongState
from manta.actors.engines.settings import EngineSettings, SimulatedSettings
from manta.actors.models.causal import build_model, model_state
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import Completion, GenerateRequest, Sampling, VersionSpan, WeightVersion
from tests.vllm_here import MODEL, NEEDS_VLLM, VOCAB

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the one vLLM engine belongs to one loop

Make = Callable[..., Engine]

FIRST = WeightVersion(0, 0)
SECOND = WeightVersion(1, 0)


def build(name: str, max_rows: int = 8, median: float = 1e9, speed: float = 2000.0) -> Engine:
    """Samples of the simulated engine run to their budgets unless `median` says less."""
    settings = EngineSettings(
        engine=name,  # type: ignore[arg-type]
        threads=1,
        max_rows=max_rows,
        simulated=SimulatedSettings(speed, median, 1.0),
    )
    return build_engine(settings, MODEL, VOCAB, seed=0, deterministic=False, version=FIRST)


@pytest.fixture(params=["embedded", "simulated", pytest.param("vllm", marks=NEEDS_VLLM)])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """One engine a test; the vLLM engine is the session's, with its initial weights."""
    made: list[Engine] = []
    if request.param == "vllm":
        shared: Engine = request.getfixturevalue("vllm")
        yield lambda **_: shared
        return

    def one(**kwargs: float) -> Engine:
        made.append(build(request.param, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for engine in made:
        if isinstance(engine, EmbeddedEngine):
            engine.close()


def request(
    prefix: list[int], seeds: list[int], budget: int = 12, sampling: Sampling | None = None
) -> GenerateRequest:
    return GenerateRequest(
        np.array(prefix, np.int32), tuple(seeds), (budget,) * len(seeds), sampling or Sampling()
    )


def weights(seed: int, version: WeightVersion) -> Weights:
    return pack(model_state(build_model(MODEL, VOCAB, seed)), version)


def same(one: Completion, other: Completion) -> bool:
    return bool(np.array_equal(one.token_ids, other.token_ids))


async def test_completions_come_in_the_order_of_requests_and_samples(make: Make) -> None:
    engine = make(max_rows=3)
    budgets = [(5, 2, 7), (1,), (3, 9)]
    out = await engine.generate(
        [
            GenerateRequest(np.array([1, 2 + i], np.int32), (1, 2, 3)[: len(b)], b, Sampling())
            for i, b in enumerate(budgets)
        ]
    )
    assert [tuple(len(c.token_ids) for c in group) for group in out] == budgets
    for completion in (c for group in out for c in group):
        assert completion.token_ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert completion.logprobs.shape == completion.token_ids.shape
        assert (completion.logprobs <= 0).all()
        assert 0 <= completion.token_ids.min() <= completion.token_ids.max() < VOCAB
        assert completion.finish_reason == "length"
        assert completion.weight_versions == (VersionSpan(0, FIRST),)


async def test_a_stop_token_ends_a_sample_and_belongs_to_it(make: Make) -> None:
    engine = make(median=8.0)
    stops = (3, 11, 17)
    seeds = list(range(40))
    [out] = await engine.generate([request([1, 2], seeds, 64, Sampling(stop_token_ids=stops))])
    reasons = {c.finish_reason for c in out}
    assert "stop" in reasons
    for completion in out:
        assert not np.isin(completion.token_ids[:-1], stops).any()
        assert (completion.token_ids[-1] in stops) == (completion.finish_reason == "stop")
        assert len(completion.token_ids) == 64 or completion.finish_reason == "stop"


async def test_equal_seeds_give_equal_samples_and_other_seeds_others(make: Make) -> None:
    engine = make()
    [first] = await engine.generate([request([5, 6], [7, 8, 7, 2**63 + 5], 20)])
    [again] = await engine.generate([request([5, 6], [8], 20)])
    assert same(first[0], first[2])
    assert same(first[1], again[0])
    assert not same(first[0], first[1])
    assert not same(first[0], first[3])


async def test_scoring_a_sample_gives_its_own_logprobs(make: Make) -> None:
    engine = make()
    prefix = [4, 5, 6]
    out = await engine.generate([request(prefix, [1, 2]), request(prefix[:1], [3], 30)])
    rows = [(prefix, out[0][0]), (prefix, out[0][1]), (prefix[:1], out[1][0])]
    scored = await engine.logprobs(
        [np.concatenate([np.array(p, np.int32), c.token_ids]) for p, c in rows]
    )
    for (given, completion), row in zip(rows, scored, strict=True):
        assert row.dtype == np.float32
        assert row[0] == 0.0
        np.testing.assert_allclose(row[len(given) :], completion.logprobs, atol=1e-5)


async def test_concurrent_calls_share_the_engine(make: Make) -> None:
    engine = make(max_rows=4)
    calls = [engine.generate([request([1, i], [i, i + 1], 6 + i)]) for i in range(10)]
    out = await asyncio.gather(*calls)
    assert [[len(c.token_ids) for c in group] for [group] in out] == [
        [6 + i, 6 + i] for i in range(10)
    ]


async def started(engine: Engine, wanted: GenerateRequest) -> asyncio.Task[list[list[Completion]]]:
    """`wanted` under way: a shorter request beside it has been served."""
    task = asyncio.ensure_future(engine.generate([wanted]))
    await engine.generate([request([1], [0], 30)])
    return task


async def test_pause_keeps_requests_and_halts_them(make: Make) -> None:
    engine = make(max_rows=4, speed=1000.0)
    third = WeightVersion(2, 0)
    under_way = await started(engine, request([1, 2], [1, 2], 600))
    await engine.pause()
    late = asyncio.ensure_future(engine.generate([request([3], [4], 1)]))
    await engine.load(weights(1, SECOND))
    await asyncio.sleep(0.2)
    await engine.load(weights(2, third))
    assert not under_way.done()
    assert not late.done()
    await engine.resume()
    [out], [[short]] = await asyncio.gather(under_way, late)
    # A token sampled during the pause would show the version that was served only then.
    assert [[v for _, v in c.weight_versions] for c in out] == [[FIRST, third]] * 2
    assert [len(c.token_ids) for c in out] == [600, 600]
    assert short.weight_versions == (VersionSpan(0, third),)


async def test_scoring_works_while_paused(make: Make) -> None:
    engine = make()
    await engine.pause()
    row = np.array([1, 2, 3, 4], np.int32)
    before = (await engine.logprobs([row]))[0]
    await engine.load(weights(1, SECOND))
    after = (await engine.logprobs([row]))[0]
    assert before.shape == after.shape == (4,)
    assert np.abs(before - after).max() > 1e-4


async def test_a_load_under_way_splits_the_versions(make: Make) -> None:
    engine = make(max_rows=4, speed=1000.0)
    under_way = await started(engine, request([1, 2], [1, 2], 600))
    await engine.pause()
    new = weights(1, SECOND)
    receipt = await engine.load(new)
    await engine.resume()
    assert receipt == type(receipt)(SECOND, new.sha256)
    [out] = await under_way
    for completion in out:
        first, second = completion.weight_versions
        assert first == VersionSpan(0, FIRST)
        assert second.version == SECOND
        assert 0 < second.start < 600
    [[fresh]] = await engine.generate([request([1], [1], 3)])
    assert fresh.weight_versions == (VersionSpan(0, SECOND),)


async def test_a_load_before_the_first_token_leaves_one_version(make: Make) -> None:
    engine = make()
    await engine.pause()
    waiting = asyncio.ensure_future(engine.generate([request([1], [1], 3)]))
    await asyncio.sleep(0.05)
    await engine.load(weights(1, SECOND))
    await engine.load(weights(2, WeightVersion(2, 0)))
    await engine.resume()
    [[completion]] = await waiting
    assert completion.weight_versions == (VersionSpan(0, WeightVersion(2, 0)),)


async def test_bytes_that_differ_from_their_hash_show_in_the_receipt_and_are_refused(
    make: Make,
) -> None:
    engine = make()
    good = weights(1, SECOND)
    data = good.data.copy()
    data[5] ^= 1
    await engine.pause()
    receipt = await engine.load(Weights(SECOND, good.specs, data, good.sha256))
    await engine.resume()
    assert receipt.sha256 != good.sha256
    [[completion]] = await engine.generate([request([1], [1], 3)])
    assert completion.weight_versions == (VersionSpan(0, FIRST),)


async def test_a_load_takes_read_only_bytes(make: Make) -> None:
    engine = make()
    new = weights(1, SECOND)
    new.data.flags.writeable = False
    await engine.pause()
    assert (await engine.load(new)).sha256 == new.sha256


async def test_a_load_while_running_is_an_error(make: Make) -> None:
    engine = make()
    with pytest.raises(RuntimeError, match="pause"):
        await engine.load(weights(1, SECOND))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request([1] * 600, [1], 41), "600 tokens and a budget of 41 make 641"),
        (request([], [1]), "empty prefix"),
        (request([1], [1], 0), "budget of 0"),
        (request([1], []), "0 seeds"),
        (request([1], [1], 3, Sampling(temperature=-1.0)), "temperature -1.0"),
        (request([1], [1], 3, Sampling(top_p=0.0)), "top_p 0.0"),
        (replace(request([1], [1], 3), drawn=2), "2 of its prefix's 1 tokens were drawn"),
        (replace(request([1], [1], 3), enough=2), "end after 2 of its 1 samples"),
        (replace(request([1], [1], 3), enough=0), "end after 0 of its 1 samples"),
    ],
)
async def test_a_request_that_cannot_be_sampled_is_refused(
    make: Make, bad: GenerateRequest, message: str
) -> None:
    engine = make()
    with pytest.raises(ValueError, match=message):
        await engine.generate([request([1], [1], 3), bad])
    [[completion]] = await engine.generate([request([1] * 600, [1], 40)])
    assert len(completion.token_ids) == 40


async def test_more_samples_than_rows_all_arrive(make: Make) -> None:
    engine = make(max_rows=5, speed=20000.0)
    out = await engine.generate([request([1, i], list(range(7)), 3 + i) for i in range(20)])
    assert [[len(c.token_ids) for c in group] for group in out] == [[3 + i] * 7 for i in range(20)]


async def test_a_cancelled_call_frees_its_rows(make: Make) -> None:
    engine = make(max_rows=2, speed=100.0)
    long = asyncio.ensure_future(engine.generate([request([1], [1, 2, 3], 600)]))
    await asyncio.sleep(0.05)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    begin = time.monotonic()
    [[completion]] = await engine.generate([request([1], [9], 1)])
    assert len(completion.token_ids) == 1
    assert time.monotonic() - begin < 3.0


async def test_what_is_sampled_so_far_can_be_read_and_is_what_will_be(make: Make) -> None:
    engine = make(max_rows=3, speed=1000.0)
    progress = Progress()
    assert await progress.read() == []
    wanted = [request([1, 2], [1, 2], 400), request([3], [3, 4], 400)]
    call = asyncio.ensure_future(engine.generate(wanted, progress))
    while len(_started(await progress.read())) < 3:  # of the four one has to wait its turn
        await asyncio.sleep(0.001)
    await engine.pause()
    first = await progress.read()
    assert [len(c.token_ids) for group in await progress.read() for c in group] == [
        len(c.token_ids) for group in first for c in group
    ]
    await engine.load(weights(1, SECOND))
    await engine.resume()
    second = first
    while min(_growth(first, second)) <= 5 and not call.done():
        await asyncio.sleep(0.01)
        second = await progress.read()
    last = await call
    for seen in (first, second):
        assert [len(group) for group in seen] == [2, 2]
        for i, j, completion in _started(seen):
            final, count = last[i][j], len(completion.token_ids)
            assert completion.finish_reason == "abort"
            assert 0 < count < len(final.token_ids)
            assert np.array_equal(completion.token_ids, final.token_ids[:count])
            assert np.array_equal(completion.logprobs, final.logprobs[:count])
            assert completion.weight_versions == tuple(
                span for span in final.weight_versions if span.start < count
            )
    assert [len(c.token_ids) for c in first[1]][1] == 0


def _growth(first: list[list[Completion]], second: list[list[Completion]]) -> list[int]:
    """Tokens that each sample begun in `first` has more in `second`."""
    return [len(second[i][j].token_ids) - len(c.token_ids) for i, j, c in _started(first)]


def _started(seen: list[list[Completion]]) -> list[tuple[int, int, Completion]]:
    return [
        (i, j, c) for i, group in enumerate(seen) for j, c in enumerate(group) if c.logprobs.size
    ]


@pytest.mark.parametrize("cut", [1, 17, 40])
async def test_a_sample_goes_on_where_another_engine_left_it(make: Make, cut: int) -> None:
    wanted = request([5, 6], [7], 60)
    [[whole]] = await make(speed=20000.0).generate([wanted])
    rest = GenerateRequest(
        np.concatenate([wanted.prefix, whole.token_ids[:cut]]), (7,), (60 - cut,), Sampling(), cut
    )
    [[completion]] = await make(speed=20000.0).generate([rest])
    assert np.array_equal(completion.token_ids, whole.token_ids[cut:])
    np.testing.assert_allclose(completion.logprobs, whole.logprobs[cut:], atol=1e-5)


async def test_lengths_do_not_depend_on_where_a_sample_was_cut(make: Make) -> None:
    sampling = Sampling(stop_token_ids=(3, 11))
    [samples] = await make(median=20.0).generate([request([1], list(range(12)), 64, sampling)])
    for seed, whole in enumerate(samples):
        cut = len(whole.token_ids) // 2
        prefix = np.concatenate([np.array([1], np.int32), whole.token_ids[:cut]])
        rest = GenerateRequest(prefix, (seed,), (64 - cut,), sampling, cut)
        [[completion]] = await make(median=20.0).generate([rest])
        assert np.array_equal(completion.token_ids, whole.token_ids[cut:])
        assert completion.finish_reason == whole.finish_reason


async def test_an_unknown_engine_is_named_with_its_nearest_match() -> None:
    settings = EngineSettings(engine="embeded")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'embedded'"):
        build_engine(settings, MODEL, VOCAB, seed=0, deterministic=False, version=FIRST)


async def test_samples_that_ended_are_told_while_others_go_on(make: Make) -> None:
    engine = make(max_rows=3, speed=1000.0)
    progress = Progress()
    assert progress.num_ended == 0
    short, long = request([1, 2], [1], 1), request([3], [3], 400)
    call = asyncio.ensure_future(engine.generate([short, long], progress))
    while progress.num_ended == 0:
        await asyncio.sleep(0.001)
    assert (progress.num_ended, call.done()) == (1, False)
    await call
    assert progress.num_ended == 2


async def test_a_request_that_has_enough_lets_its_other_samples_go(make: Make) -> None:
    """Beside it a long request goes on in the same call, and its rows are free for others."""
    engine = make(max_rows=3, speed=1000.0)
    short = GenerateRequest(
        np.array([1, 2], np.int32), (1, 2, 3, 4), (300, 5, 300, 5), Sampling(), enough=2
    )
    progress = Progress()
    call = asyncio.ensure_future(engine.generate([short, request([3], [9], 300)], progress))
    while progress.num_ended < 4:
        await asyncio.sleep(0.001)
    assert not call.done()
    [seen, _] = await progress.read()
    assert [c.finish_reason for c in seen] == ["abort", "length", "abort", "length"]
    await engine.generate([request([1], [i], 5) for i in range(4)])
    [cut, [long]] = await call
    assert progress.num_ended == 5
    assert len(long.token_ids) == 300
    assert [c.finish_reason for c in cut] == ["abort", "length", "abort", "length"]
    assert [len(c.token_ids) for c in cut][1::2] == [5, 5]
    for before, after in zip(seen, cut, strict=True):
        assert same(before, after), "a sample that was cut goes on"
        assert len(after.logprobs) == len(after.token_ids) < 300
        assert all(span.start < len(after.token_ids) for span in after.weight_versions)
    [whole] = (await engine.generate([replace(short, enough=None)]))[0][:1]
    count = len(cut[0].token_ids)
    assert np.array_equal(whole.token_ids[:count], cut[0].token_ids)


async def test_samples_that_end_at_once_may_be_more_than_enough(make: Make) -> None:
    engine = make(max_rows=4, speed=20000.0)
    wanted = replace(request([1, 2], [1, 2, 3, 4], 6), enough=3)
    [out] = await engine.generate([wanted])
    whole = [c for c in out if c.finish_reason == "length"]
    assert len(out) == 4 and len(whole) >= 3
    assert all(len(c.token_ids) == 6 for c in whole)
    [[after]] = await engine.generate([request([1], [1], 3)])
    assert len(after.token_ids) == 3


def sleeper(make: Make, **kwargs: float) -> tuple[Engine, Sleeps]:
    """One engine, as both; the simulated one has nothing to free."""
    engine = make(**kwargs)
    if not isinstance(engine, Sleeps):
        pytest.skip("an engine that holds no memory")
    return engine, engine


async def test_asleep_it_holds_nothing_and_awake_the_weights_that_it_is_given(make: Make) -> None:
    engine, sleeps = sleeper(make)
    wanted = request([1, 2], [1, 2], 40)
    [before] = await engine.generate([wanted])
    full = await sleeps.held_bytes()
    await engine.pause()
    await sleeps.sleep()
    assert full > 10_000
    assert await sleeps.held_bytes() == 0
    await sleeps.wake()
    assert await sleeps.held_bytes() > 10_000
    new = weights(1, SECOND)
    assert (await engine.load(new)).sha256 == new.sha256
    await engine.resume()
    [other] = await engine.generate([wanted])
    await engine.pause()
    await sleeps.sleep()
    await sleeps.wake()
    await engine.load(weights(0, WeightVersion(2, 0)))
    await engine.resume()
    [after] = await engine.generate([wanted])
    assert [c.weight_versions for c in other] == [(VersionSpan(0, SECOND),)] * 2
    assert not same(before[0], other[0])
    for first, last in zip(before, after, strict=True):
        assert same(first, last)
        np.testing.assert_allclose(first.logprobs, last.logprobs, atol=1e-5)


async def test_requests_are_kept_over_a_sleep_and_go_on_exactly(make: Make) -> None:
    engine, sleeps = sleeper(make, max_rows=3)
    # One sample more than there are rows, so that one waits with its prefix run.
    wanted, cut = request([1, 2], [1, 2], 600), request([4], [5, 6], 600)
    under_way = await started(engine, wanted)
    given_up = asyncio.ensure_future(engine.generate([cut]))
    await asyncio.sleep(0.05)
    await engine.pause()
    await sleeps.sleep()
    late = asyncio.ensure_future(engine.generate([request([3], [4], 2)]))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await sleeps.wake()
    await engine.load(weights(1, SECOND))
    await engine.resume()
    [out], [[short]] = await asyncio.gather(under_way, late)
    assert short.weight_versions == (VersionSpan(0, SECOND),)
    rows = [np.concatenate([wanted.prefix, c.token_ids]) for c in out]
    for completion, row, scored in zip(out, rows, await engine.logprobs(rows), strict=True):
        assert len(row) == 602
        assert [v for _, v in completion.weight_versions] == [FIRST, SECOND]
        start = completion.weight_versions[1].start
        # What was sampled before stays as it was; what came after is the new weights', to the last.
        np.testing.assert_allclose(completion.logprobs[start:], scored[2 + start :], atol=1e-4)
        assert np.abs(completion.logprobs[:start] - scored[2 : 2 + start]).max() > 1e-3


async def test_asleep_or_without_weights_it_neither_scores_nor_serves(make: Make) -> None:
    engine, sleeps = sleeper(make)
    with pytest.raises(WrongState, match="pause"):
        await sleeps.sleep()
    await engine.pause()
    await sleeps.sleep()
    await sleeps.sleep()
    await engine.pause()
    row = np.array([1, 2, 3], np.int32)
    with pytest.raises(WrongState, match="wake"):
        await engine.load(weights(1, SECOND))
    for state in ("asleep", "empty"):
        for call in (engine.resume(), engine.logprobs([row])):
            with pytest.raises(WrongState, match=f"while {state}: it holds no weights"):
                await call
        await sleeps.wake()
    good = weights(1, SECOND)
    data = good.data.copy()
    data[5] ^= 1
    await engine.load(Weights(SECOND, good.specs, data, good.sha256))
    with pytest.raises(WrongState, match="call load"):
        await engine.resume()
    await engine.load(good)
    await engine.resume()
    [[completion]] = await engine.generate([request([1], [1], 3)])
    assert completion.weight_versions == (VersionSpan(0, SECOND),)
