"""What each kind of stage leaves, written when it has ended.

Weights come from the committed checkpoint of the stage's end, so that a run that was killed in
between writes them when it goes on, and a learner never waits for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from torch import Tensor

from manta.actors.stored_folder import StoredFolder
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.evaluate import Evaluation
from manta.orchestrator.export import write_checkpoint, write_tensors
from manta.orchestrator.model_names import leaves
from manta.orchestrator.products import REPORT, Product, Products
from manta.orchestrator.run_context import RunContext


async def leave(run: RunContext, stage: StageConfig) -> None:
    """The product of a stage that has ended, unless it is there: its end's checkpoint is."""
    if run.products.of(stage.name) is not None:
        return
    what = f"find the checkpoint that ends stage {stage.name}"
    if stage.makes_policy:
        end = await run.storage.ask(what, run.checkpoints.stage_end, stage.name)
        assert end is not None and end.learner is not None, "it has ended"
        fill = partial(_fill_from_checkpoint, run.run_file, stage, end.learner)
        await _write(run, stage, end.state.step, fill)
    elif leaves(stage) == "data":
        end = await run.storage.ask(what, run.checkpoints.stage_end, stage.name)
        step = run.progress.step if end is None else end.state.step
        with run.recorder.phase("product"):
            what = f"finish what stage {stage.name} leaves"
            product = await run.storage.ask(what, run.products.finish, stage.name, "data", step)
        _tell(run, product)


async def leave_weights(run: RunContext, stage: StageConfig, tensors: Mapping[str, Tensor]) -> None:
    """Weights that no checkpoint holds, since they do not become the policy."""
    fill = partial(_fill_with_tensors, run.run_file, tensors)
    await _write(run, stage, run.progress.step, fill)


async def leave_report(run: RunContext, stage: StageConfig, evaluation: Evaluation) -> None:
    report = {"stage": stage.name, "step": run.progress.step, "model": stage.model or "policy"}
    text = json.dumps(report | asdict(evaluation), indent=1) + "\n"

    def fill(folder: Path) -> None:
        (folder / REPORT).write_text(text, encoding="utf-8")

    product = run.products.write(stage.name, "report", run.progress.step, fill)
    _tell(run, product)


def read_report(products: Products, stage: str) -> Evaluation:
    """What an evaluate stage found. Raises ValueError where its product is missing or damaged."""
    file = products.folder(f"stage:{stage}", "report") / REPORT
    report = json.loads(file.read_text(encoding="utf-8"))
    # A report of an earlier version may lack a field that has a default
    known = {field.name for field in fields(Evaluation)} & report.keys()
    return Evaluation(**{name: report[name] for name in known})


def left_by(products: Products) -> dict[str, str]:
    """{name: kind} of all products, for a summary; none where one cannot be read."""
    try:
        return {f"stage:{product.stage}": product.kind for product in products.listed()}
    except ValueError:
        return {}


def _fill_from_checkpoint(
    run_file: RunFile, stage: StageConfig, learner: StoredFolder, folder: Path
) -> None:
    """The policy's weights, or the reward model's where the stage trained one beside it."""
    settings = None if stage.algorithm is None else stage.algorithm.reward_model
    if settings is not None:
        # Imported here: it loads transformers, which the driver of other runs need not
        from manta.orchestrator.reward_model_export import export_reward_model

        export_reward_model(run_file, settings, learner, folder)
    else:
        write_checkpoint(run_file, learner, folder)


def _fill_with_tensors(run_file: RunFile, tensors: Mapping[str, Tensor], folder: Path) -> None:
    write_tensors(run_file, tensors, folder)


async def _write(
    run: RunContext, stage: StageConfig, step: int, fill: Callable[[Path], None]
) -> None:
    with run.recorder.phase("product"):
        what, kind = f"write what stage {stage.name} leaves", leaves(stage)
        product = await run.storage.ask(what, run.products.write, stage.name, kind, step, fill)
    _tell(run, product)


def _tell(run: RunContext, product: Product) -> None:
    run.recorder.event(
        "product",
        {"name": f"stage:{product.stage}", "kind": product.kind, "sha256": product.sha256},
        f"stage:{product.stage} left {product.kind}",
    )
