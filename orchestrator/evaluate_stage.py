"""A stage that evaluates weights, the policy's or others', and leaves a report.

How samples are made and what is found in them is `manta.orchestrator.examiner`'s.
"""

from __future__ import annotations

from manta.orchestrator.adoption import serving
from manta.orchestrator.config import StageConfig
from manta.orchestrator.examiner import Examiner
from manta.orchestrator.run_context import RunContext
from manta.orchestrator.stage_products import leave_report, read_report


async def evaluate_stage(run: RunContext, stage: StageConfig) -> None:
    """What an earlier life has found is not looked for again: only its metrics were left behind."""
    if run.products.of(stage.name) is not None:
        run.recorder.evaluation(run.progress, read_report(run.products, stage.name))
        return
    async with serving(run, stage):
        examiner = Examiner(run, stage)
        await examiner.open()
        evaluation = await examiner.examine()
    assert evaluation is not None
    await leave_report(run, stage, evaluation)
