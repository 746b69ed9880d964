"""Engines and environment workers that die or are not wanted any more, with real Ray actors."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from manta.actors.engines.settings import EngineSettings, SimulatedSettings
from manta.actors.lanes import Admission, Lane
from manta.actors.models.spec import ModelSpec
from manta.actors.restored_environment import restored_environment
from manta.actors.reward import RewardWorker
from manta.actors.router_figures import RouterFigures
from manta.actors.transports.object_store import ObjectStoreTransport
from manta.actors.transports.settings import TransportSettings
from manta.actors.weights import Weights, content_hash
from manta.envs.records import GroupId, VersionSpan, WeightVersion
from manta.orchestrator import status
from manta.orchestrator.attempts import MAX_LOSSES
from manta.orchestrator.environment_pool import EnvironmentPool
from manta.orchestrator.ledger import read_ledger
from manta.orchestrator.pools import ModelSource, start
from manta.orchestrator.rollout_pool import RolloutPool
from tests.e2e import runs

pytestmark = pytest.mark.e2e
TOKENIZER = "char:0123456789+="
BUDGET, SPEED, SAMPLES = 600, 150.0, 4
FIRST, SECOND = WeightVersion(0, 0), WeightVersion(1, 0)


class Pools:
    """Two simulated engines, of different weights, and two environment workers."""

    def __init__(self) -> None:
        settings = EngineSettings(
            engine="simulated",
            workers=2,
            max_rows=2 * SAMPLES,
            progress_seconds=0.25,
            simulated=SimulatedSettings(SPEED, length_median=1e9, length_sigma=0.0),
        )
        model = ModelSource(ModelSpec(context=1024), vocab_size=19, seed=0)
        self.rollout = RolloutPool(
            model, settings, 0.1, deterministic=False, transport=TransportSettings()
        )
        self.environment = EnvironmentPool(
            2, 0.1, TOKENIZER, self.rollout, [start(RewardWorker, 0.1)], []
        )

    async def open(self) -> None:
        lane = Lane(
            name="rl", env="arithmetic", env_options={"digits": 1, "eval_size": 20}, split="train",
            samples_from="policy", samples_per_prompt=SAMPLES, seed=3, context=1024,
            max_new_tokens=BUDGET, ignore_eos=True,
        )  # fmt: skip
        await self.environment.open(lane, {})
        data = np.zeros(8, np.uint8)
        weights = Weights(SECOND, (), data, content_hash((), data))
        parcel = ObjectStoreTransport().send(weights)
        await self.rollout.renew("policy-1", ray.put(parcel), weights.sha256, ())
        await self.rollout.resume("policy-1")
        await self.rollout.serve("policy-1")

    async def until(self, holds: Callable[[RouterFigures], bool]) -> RouterFigures:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if holds(figures := await self.rollout.figures()):
                return figures
            await asyncio.sleep(0.05)
        raise TimeoutError(f"the router did not get there: {figures}")

    def kill(self, name: str) -> None:
        ray.kill(self.rollout._engines[name])


@pytest.fixture(scope="module")
def pools(cluster: runs.Environment) -> Iterator[Pools]:
    with restored_environment() as environment:
        environment.update(cluster)
        environment["PYTHONPATH"] = str(runs.ROOT)
        ray.init(log_to_driver=False)
        try:
            made = Pools()
            asyncio.run(made.open())
            yield made
        finally:
            ray.shutdown()


def admissions(*positions: int) -> list[Admission]:
    return [Admission(GroupId(0, position, 0), position) for position in positions]


def test_what_nobody_waits_for_leaves_the_engines(pools: Pools) -> None:
    """A cancelled block, then a dead environment worker: their rows make room at once."""

    async def run() -> None:
        await pools.rollout.serve("policy-0")
        blocks = [
            asyncio.ensure_future(pools.environment.run_block("rl", admissions(i, i + 1)))
            for i in (0, 2, 4)
        ]
        await pools.until(lambda f: f.rows == 4 * SAMPLES and f.waiting == 2)
        begin = time.monotonic()
        blocks[0].cancel()
        blocks[1].cancel()
        await pools.until(lambda f: f.rows == 2 * SAMPLES and f.waiting == 0)
        assert time.monotonic() - begin < BUDGET / SPEED, "they ran to their end"
        await asyncio.gather(*blocks[:2], return_exceptions=True)
        worker = next(i for i, n in pools.environment._outstanding.items() if n)
        ray.kill(pools.environment.living.workers[worker])
        with pytest.raises(ray.exceptions.ActorDiedError):
            await blocks[2]
        await pools.until(lambda f: f.rows == 0)
        begin = time.monotonic()
        _, summary = await pools.environment.run_block("rl", admissions(6))
        assert len(summary.groups) == 1
        assert time.monotonic() - begin < 1.5 * BUDGET / SPEED, "the rows were still taken"

    asyncio.run(run())


def test_a_group_goes_on_elsewhere_from_the_tokens_that_were_made(pools: Pools) -> None:
    async def run() -> None:
        await pools.rollout.serve("policy-0")
        _, whole = await _block(pools.environment.run_block("rl", admissions(9)))
        assert {span.version for t in whole for span in t.weight_versions} == {FIRST}

        before = await pools.rollout.figures()
        making = asyncio.ensure_future(pools.environment.run_block("rl", admissions(9)))
        await pools.until(lambda f: f.engines["policy-0"].rows == SAMPLES)
        await asyncio.sleep(1.5)
        pools.kill("policy-0")
        _, patched = await _block(making)
        after = await pools.rollout.figures()
        assert [life.engine for life in after.lost] == ["policy-0"]
        assert after.retries - before.retries == 1
        kept = []
        for one, other in zip(patched, whole, strict=True):
            # Same seeds, and tokens that do not depend on the weights: nothing is missing, nothing
            # is there twice, and the random stream went on where it was.
            assert np.array_equal(one.token_ids, other.token_ids)
            first, second = one.weight_versions
            assert (first.version, second.version) == (FIRST, SECOND)
            assert first == VersionSpan(len(one.token_ids) - BUDGET, FIRST)
            kept.append(second.start - first.start)
            assert one.logprobs is not None and other.logprobs is not None
            cut = second.start
            assert np.array_equal(one.logprobs[:cut], other.logprobs[:cut])
            assert not np.array_equal(one.logprobs[cut:], other.logprobs[cut:])
        assert sum(kept) == after.kept_tokens - before.kept_tokens
        assert min(kept) > 0.5 * SPEED

    asyncio.run(run())


async def _block(
    making: Awaitable[tuple[ray.ObjectRef, object]],
) -> tuple[object, list]:
    block, summary = await making
    return summary, list((await block).groups[0].trajectories)


VICTIMS = {
    "engine": "policy-0",
    "environment worker": "environment-1",
    "reward worker": "reward-0",
    "reference worker": "reference-0",
}


def test_workers_that_are_killed_during_a_run_are_replaced(
    tmp_path: Path, cluster: runs.Environment
) -> None:
    """A worker of each role, then the engine that serves; another one stands by."""
    overrides = (
        "rollout.workers=1",
        "rollout.standby=1",
        "rollout.max_staleness=1",
        "environment.workers=2",
        "stages.rl.steps=2000",
        "checkpoint.every_steps=500",
        "evaluate.every_steps=500",
    )
    process = runs.start(runs.TINY, tmp_path, *overrides, env=cluster)
    run_dir = tmp_path / "tiny"
    runs.wait_for_step(run_dir, 8)
    workers = status.read(run_dir / "status.json").workers
    pids = {each.name: each.identity.process.pid for each in workers if each.identity is not None}
    for victim in VICTIMS.values():
        os.kill(pids[victim], signal.SIGKILL)
    for role in VICTIMS:
        runs.wait_for_events(run_dir, f"{role} joined")
    # One of the two engines served, and now the other one must
    os.kill(pids["policy-1"], signal.SIGKILL)
    runs.wait_for_events(run_dir, "engine joined", 2)

    def figures() -> list[float | None]:
        last = runs.metrics(run_dir)[-1]
        return [last.get(f"pool/rollout/{name}") for name in ("serving", "standby", "deaths")]

    # They are taken once a second, and steps are shorter: there was a standby before the kill too
    runs.wait_until(lambda: figures() == [1, 1, 2], f"{run_dir}: no step with a standby")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == 0, output
    lines = runs.metrics(run_dir)
    entries = runs.check_history(run_dir, int(lines[-1]["step"]))
    events = runs.worker_events(run_dir)
    died = [(name, worker) for name, worker in events if name.endswith(" died")]
    expected = [(f"{role} died", worker) for role, worker in VICTIMS.items()]
    assert sorted(died) == sorted([*expected, ("engine died", "policy-1")])
    assert {("engine joined", "policy-0"), ("engine joined", "policy-1")} <= set(events)
    took = runs.told(run_dir, "engine takes the place")
    assert took[-1] == {"worker": "policy-0", "of": "policy-1"}
    assert figures() == [1, 1, 2]
    assert lines[-1]["publish/probe_gap"] < 1e-3
    dropped = Counter(
        (entry.stage, *entry.group[:2])
        for entry in read_ledger(run_dir / "ledger.jsonl")
        if entry.outcome == "dropped"
    )
    assert max(dropped.values(), default=0) < MAX_LOSSES, "a group was dropped for good"
    made = {(entry.stage, *entry.group[:2]) for entry in entries}
    assert len(dropped.keys() - made) <= 2 * 8, "more than was under way at the end"
