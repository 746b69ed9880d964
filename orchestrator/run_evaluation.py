"""`manta eval`: a checkpoint's weights on the held-out tasks of a run file."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import ray
from rich.console import Console

from manta.actors.step_work import StartOrder
from manta.actors.stored_folder import StoredFolder
from manta.actors.weights import Weights
from manta.orchestrator.alarms import incomplete_evaluation
from manta.orchestrator.build import Crew, build
from manta.orchestrator.checkpoint import Checkpoint, Checkpoints
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.evaluate import Evaluation
from manta.orchestrator.evaluate import evaluate as evaluate_lane
from manta.orchestrator.lanes import eval_lane
from manta.orchestrator.learner_weights import learner_weights
from manta.orchestrator.open_lanes import open_lane
from manta.orchestrator.placement import check_resources, connect
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.wait import Waits


def evaluate(run_file: RunFile, checkpoint: str | None) -> int:
    """Prints the evaluation of the last stage that has one; `checkpoint` defaults to the newest.

    Raises ValueError where there is no such checkpoint or no stage evaluates.
    """
    stage = _stage(run_file)
    directory = RunDirectory.of(run_file)
    run_dir = directory.root
    chosen = _checkpoint(directory, checkpoint)
    # Not through the run's own folder of weights, where the run itself may be at work
    publish = replace(run_file.publish, transport="object_store", path=None)
    stages = (
        replace(
            stage,
            kind="evaluate",
            algorithm=None,
            model=None,
            start_from=None,
            tag=stage.prompt_tag,
        ),
    )
    # No learner is there to stand beside
    rollout = replace(run_file.rollout, placement="disaggregated")
    alone = replace(run_file, stages=stages, publish=publish, rollout=rollout)
    cluster = connect(os.getcwd(), run_file.run.cluster, run_file.run.variables)
    try:
        check_resources(alone, cluster)
        found = asyncio.run(_evaluate(alone, chosen, run_dir))
    finally:
        ray.shutdown()
    console = Console()
    console.print(f"{chosen.folder}", soft_wrap=True, highlight=False)
    console.print(
        f"accuracy {found.accuracy:.1%} over {found.num_samples} samples of the held-out tasks of "
        f"stage {stage.name}, reward {found.reward:.3f}, {found.mean_tokens:.1f} tokens an answer"
    )
    for passed in found.passes:
        console.print(passed)
    if found.num_broken:
        console.print(str(incomplete_evaluation(found.num_broken)), soft_wrap=True)
    if found.gold_logprob is not None:
        console.print(f"gold answers: {found.gold_logprob:.4f} log-prob per token")
    return 0


def _stage(run_file: RunFile) -> StageConfig:
    for stage in reversed(run_file.stages):
        if stage.evaluate is not None:
            return stage
    raise ValueError("no stage of the run file has an evaluate block: add one")


def _checkpoint(directory: RunDirectory, folder: str | None) -> Checkpoint:
    place = directory.checkpoints_at()
    checkpoints = Checkpoints(place, keep=1)
    if folder is None:
        found = checkpoints.latest()[0]
    else:
        named = folder if "://" in folder else str(Path(folder).absolute())
        found = checkpoints.read(StoredFolder.at(named))
    if found is None or found.learner is None:
        raise ValueError(
            f"{folder or place} holds no checkpoint of trained weights: train first, or name "
            "one with --checkpoint"
        )
    return found


async def _evaluate(run_file: RunFile, checkpoint: Checkpoint, run_dir: Path) -> Evaluation:
    waits = Waits()
    crew = build(run_file, run_dir, StartOrder(0, 0, "", None), waits, None)
    try:
        return await waits.wait(
            "the workers to start and evaluate the checkpoint",
            _examine(run_file, crew, checkpoint, waits),
            run_file.run.deadline_seconds,
        )
    finally:
        await crew.rollout.close()


async def _examine(
    run_file: RunFile, crew: Crew, checkpoint: Checkpoint, waits: Waits
) -> Evaluation:
    await _serve(crew, learner_weights(checkpoint))
    [stage] = run_file.stages
    assert stage.evaluate is not None
    lane = eval_lane(run_file, stage, stage.evaluate)
    num_tasks = await open_lane(crew, lane, waits, run_file.run.deadline_seconds)
    return await evaluate_lane(crew.environment, lane, stage.evaluate, num_tasks)


async def _serve(crew: Crew, weights: Weights) -> None:
    """Loads `weights` into every engine and takes those into service whose receipt is right."""
    await crew.client.put_weights(weights)
    parcel = crew.client.parcel(weights.version, None)
    for name in crew.rollout.names:
        renewed = await crew.rollout.renew(name, parcel, weights.sha256, ())
        if renewed.delivery.receipt.sha256 != weights.sha256:
            raise RuntimeError(f"engine {name} received other bytes than the checkpoint holds")
        await crew.rollout.resume(name)
        await crew.rollout.serve(name)
