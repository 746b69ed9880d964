"""What a run file with an implicit process reward model must say elsewhere.

The model's settings alone are `manta.algorithms.contradictions`'.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.backends.settings import BACKEND_NAMES, HOLDING_RESIDENTS
from manta.algorithms.part_settings import ImplicitRewardSettings
from manta.orchestrator.config import RunFile
from manta.orchestrator.model_folder import folder_problems

_APART = "or take an algorithm without one, such as rloo"


def process_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key. A stage that trains nothing has no use for the model:
    what it takes of an algorithm is how many samples to make."""
    for index, stage in enumerate(run_file.stages):
        if stage.kind != "train" or stage.algorithm is None:
            continue
        if stage.algorithm.implicit_reward is not None:
            for told in _stage(run_file, stage.algorithm.implicit_reward):
                yield f"stages[{index}].algorithm.implicit_reward{told}"


def _stage(run_file: RunFile, told: ImplicitRewardSettings) -> Iterator[str]:
    """As the rest of the key and what is wrong."""
    backend = run_file.learner.backend
    if backend in BACKEND_NAMES and backend not in HOLDING_RESIDENTS:
        yield (
            f": learner.backend {backend} cannot train a reward model beside the policy: choose "
            f"{' or '.join(HOLDING_RESIDENTS)}, {_APART}"
        )
    if run_file.model.lora is not None:
        yield (
            ": with model.lora the policy is an adapter over weights that stay as they are, and a "
            f"whole model beside it is not supported: remove model.lora, {_APART}"
        )
    if told.path is not None:
        for problem in folder_problems(told.path, run_file.model.context):
            yield f".path: {problem}"
