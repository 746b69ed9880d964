"""Three publishes by a direct transport, with real actors: a program that a test runs.

The pools, the publisher, the mailbox, the weight store and a rank's meetings are the real ones; the
wire is files, and the engine is the embedded one. Prints what was published as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path

import ray
import torch

from manta.actors.engines.settings import EngineSettings
from manta.actors.hand_over import HandedOver, HandOver
from manta.actors.meeting import Meetings
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.policy import token_logprobs
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.muster import Member
from manta.actors.step_work import StartOrder, StepReport
from manta.actors.transports.direct import DirectSender
from manta.actors.transports.settings import TransportSettings
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion
from manta.envs.step_records import Update
from manta.orchestrator import pools, rollout_pool
from manta.orchestrator.probe import Tolerances, probe_rows
from manta.orchestrator.publish import Published, Publisher
from manta.orchestrator.wait import Waits
from tests.e2e.spool_worker import SpoolWorker
from tests.unit.actors.engines.spool_transfer import SpoolTrainer

VOCAB = 17
SPEC = ModelSpec(build=BuildSpec(layers=1, width=16, heads=2, mlp_width=16), context=32)
NCCL = TransportSettings("nccl")
SECONDS = 120.0


class Rank:
    """A learner of one rank, whose weights are random at every step."""

    def __init__(self, client: pools.MailboxClient) -> None:
        self._client = client
        sender = DirectSender("nccl", 0, torch.device("cpu"), SpoolTrainer.trainer_init)
        self._meetings = Meetings("nccl", 0, sender)
        self._probe = probe_rows(VOCAB, SPEC.context)

    def step(self, step: int) -> StepReport:
        model = build_model(SPEC, VOCAB, step)
        weights = pack(model_state(model), WeightVersion(step, 0))
        self._meetings.keep(weights)
        probe = tuple(token_logprobs(model, self._probe))
        return StepReport(Update(weights.version, {}, weights.sha256), probe, {})

    async def obey(self) -> None:
        """All orders, as `manta.actors.learner` does between steps."""
        for handed in itertools.count():
            order = await self._client.mailbox.take.remote(99, 0, handed)
            assert isinstance(order, HandOver)
            answer = await asyncio.to_thread(self._answer, order)
            await self._client.mailbox.handed.remote(order.number, 0, answer)

    def _answer(self, order: HandOver) -> HandedOver:
        if order.receivers is not None:
            return self._meetings.meet(order.receivers)
        weights: Weights = self._meetings.kept
        ray.get(self._client.weight_store.put.remote(weights))
        return HandedOver()


async def publish_three_times(folder: Path) -> list[Published]:
    """Well; with one bit spoilt at one engine; with the wire broken in between."""
    rollout_pool.RolloutWorker = SpoolWorker  # type: ignore[misc, attr-defined]
    SpoolTrainer.folder = folder
    settings = EngineSettings(workers=2, threads=1)
    client = pools.MailboxClient(StartOrder(0, 0, "rl", None), NCCL)
    await client.mailbox.enlist.remote("ranks", 1, Member(0, os.getpid(), "", None))
    rollout = rollout_pool.RolloutPool(
        pools.ModelSource(SPEC, VOCAB, 0), settings, 0.5, False, NCCL
    )
    probe = probe_rows(VOCAB, SPEC.context)
    tolerances = Tolerances(1e-3, 1e-4)
    publisher = Publisher(rollout, client, probe, tolerances, Waits(), SECONDS, is_direct=True)
    rank = Rank(client)
    obeying = asyncio.create_task(rank.obey())
    published = [await publisher.publish(rank.step(1))]
    (folder / "damage").touch()
    published.append(await publisher.publish(rank.step(2)))
    SpoolTrainer.breaks = True
    published.append(await publisher.publish(rank.step(3)))
    obeying.cancel()
    await rollout.close()
    return published


def main() -> None:
    ray.init(log_to_driver=False)
    told = [
        {"resent": each.resent, "problems": each.problems, "retired": each.retired,
         "bytes": each.num_bytes, "gap": each.probe_gap}
        for each in asyncio.run(publish_three_times(Path(sys.argv[1])))
    ]  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
