"""Between two stages: other weights for the learner, and with it for the engines.

Learner ranks take them with a fresh optimizer, and they are published and proven as after a step.
So whoever samples or is evaluated under a name serves what the learner can vouch for. Where the
weights come from is `manta.orchestrator.named_weights`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import ray

from manta.actors.step_work import Adopt
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion
from manta.orchestrator.config import StageConfig
from manta.orchestrator.model_names import Mixed, parse_mixed
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.wait import unless_ended


async def start_from(run: RunContext, stage: StageConfig, name: Mixed) -> None:
    """The policy becomes what `name` means, before the first step of `stage`."""
    version = WeightVersion(run.progress.step, run.incarnation)
    named = await run.storage.ask(f"read {name}", run.named.named, name, stage, version)
    await adopt(run, stage, named.weights)
    run.recorder.event("took weights", {"stage": stage.name, "weights": named.label})


@asynccontextmanager
async def serving(run: RunContext, stage: StageConfig) -> AsyncIterator[None]:
    """Meanwhile the engines serve the weights that `stage.model` names, if it names any; then the
    policy again, unless the run stops."""
    if stage.model is None:
        yield
        return
    await start_from(run, stage, parse_mixed(stage.model))
    yield
    if not run.should_stop.is_set():
        what = "find the policy's newest checkpoint"
        policy = await run.storage.ask(what, run.named.policy, run.progress.step)
        await start_from(run, stage, policy)


async def become(run: RunContext, stage: StageConfig, weights: Weights) -> None:
    """The policy becomes `weights` by a step of its own, the last one of `stage`."""
    step = weights.version.step
    save_to = await run.commits.begin(step)
    await adopt(run, stage, weights, save_to)
    run.progress.advance()
    run.checkpoint(None, ends_stage=True, has_learner=True)
    await run.commits.settled()


async def adopt(
    run: RunContext, stage: StageConfig, weights: Weights, save_to: str | None = None
) -> None:
    order = Adopt(next(run.adoptions), stage.name, ray.put(weights), weights.version, save_to)
    assert run.crew.learner is not None
    with run.recorder.phase("take_weights"):
        reports = await run.waits.wait(
            f"the learner ranks to take the weights of stage {stage.name}",
            unless_ended(run.crew.mailbox.adopt(order), run.crew.learner.ended()),
            run.deadline_seconds,
        )
        published = await run.crew.publisher.publish(reports[0])
    run.published(published)
