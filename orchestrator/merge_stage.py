"""A stage that averages weights: a product, and with it the policy unless the run file says no."""

from __future__ import annotations

from torch import Tensor

from manta.actors.weight_tensors import pack
from manta.envs.records import WeightVersion
from manta.orchestrator.adoption import become
from manta.orchestrator.config import StageConfig
from manta.orchestrator.model_names import SoupName, parse_mixed
from manta.orchestrator.named_weights import NamedWeights
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.side_thread import in_thread
from manta.orchestrator.stage_products import leave_weights


async def merge(run: RunContext, stage: StageConfig) -> None:
    """`stage.models`, weighed by `stage.weights`. As a policy they are a step of the run, with a
    checkpoint; else they are a product alone."""
    with run.recorder.phase("merge"):
        what = f"read and average what stage {stage.name} merges"
        mixed = await run.storage.ask(what, _mixed, run.named, stage)
    if stage.becomes_policy:
        version = WeightVersion(run.progress.step + 1, run.incarnation)
        await become(run, stage, await in_thread(pack, mixed, version))
    else:
        await leave_weights(run, stage, mixed)
    run.recorder.event("merged", {"stage": stage.name, "models": list(stage.models)})


def _mixed(named: NamedWeights, stage: StageConfig) -> dict[str, Tensor]:
    names = [parse_mixed(model) for model in stage.models]
    [first, *others] = names
    if not others:
        return named.tensors(first, stage)
    parts = tuple(name for name in names if not isinstance(name, SoupName))
    assert len(parts) == len(names), "checked before the run"
    return named.tensors(SoupName(parts), stage, stage.weights)
