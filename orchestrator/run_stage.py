"""One stage of a run, by its kind."""

from __future__ import annotations

from manta.orchestrator.config import StageConfig
from manta.orchestrator.evaluate_stage import evaluate_stage
from manta.orchestrator.feed import FeedState
from manta.orchestrator.generate_stage import GenerateStage
from manta.orchestrator.merge_stage import merge
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.train_stage import TrainStage


async def run_stage(run: RunContext, stage: StageConfig, feed: FeedState | None) -> bool:
    """From wherever the run stands in it; whether it came to its end."""
    if stage.kind == "train":
        return await TrainStage(run, stage).run(feed)
    if stage.kind in ("generate", "annotate"):
        return await GenerateStage(run, stage).run(feed)
    if stage.kind == "evaluate":
        await evaluate_stage(run, stage)
    elif run.products.of(stage.name) is None:
        await merge(run, stage)
    return True
