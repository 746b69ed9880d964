"""What a run file must say where rows are compared: pairs from data, references, reward models.

What such an algorithm must say of itself is `contradictions.check`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.actors.backends.settings import BACKEND_NAMES, HOLDING_RESIDENTS
from manta.algorithms.part_settings import RewardModelSettings
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.protocols import Compares
from manta.envs.registry import build
from manta.orchestrator.config import EnvConfig, RunFile, StageConfig
from manta.orchestrator.model_folder import folder_problems


def pair_problems(run_file: RunFile) -> Iterator[str]:
    """One line each, starting with the key."""
    for index, stage in enumerate(run_file.stages):
        algorithm = stage.algorithm
        if algorithm is None or stage.kind == "evaluate":
            continue
        for told in _stage(run_file, stage, algorithm):
            yield f"stages[{index}]{told}"


def _stage(run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    """Problems of one stage, as the rest of the key and what is wrong."""
    if algorithm.compares_given and stage.trajectories is None and stage.env is not None:
        yield from _answers(stage.env, algorithm)
    if stage.kind != "train":
        return
    temperature = run_file.rollout.temperature
    compares = algorithm.is_coupled and algorithm.needs_reference
    if compares and algorithm.samples_from == "given" and temperature != 1:
        yield (
            f".algorithm: '{algorithm.name}' compares log-probs of given answers at temperature 1 "
            f"with the reference's, which are at rollout.temperature ({temperature:g}): set that "
            "to 1 (evaluate.temperature is another), or train this stage in a run of its own"
        )
    if algorithm.reward_model is not None:
        for told in _reward_model(run_file, algorithm.reward_model):
            yield f".algorithm.reward_model{told}"


def _answers(env: EnvConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    try:
        made = build("env", env.name, env.options)
    except (ValueError, OSError):
        return  # told by whoever looks at the data
    if not isinstance(made, Compares):
        does = "compares" if algorithm.is_paired else "chooses among or weighs"
        yield (
            f".env: '{env.name}' has one written answer a task, and algorithm '{algorithm.name}' "
            f"{does} several: use preferences, learn from sampled groups (`trajectories: "
            "stage:NAME`), or let the policy sample (`samples_from: policy`, with a reward)"
        )
    elif made.num_answers != algorithm.samples_per_prompt:
        yield (
            f".algorithm.samples_per_prompt: is {algorithm.samples_per_prompt}, but '{env.name}' "
            f"has {made.num_answers} written answers a task: set it to {made.num_answers}"
        )


def _reward_model(run_file: RunFile, told: RewardModelSettings) -> Iterator[str]:
    backend = run_file.learner.backend
    if backend in BACKEND_NAMES and backend not in HOLDING_RESIDENTS:
        yield (
            f": learner.backend {backend} cannot train a reward model beside the policy: choose "
            f"{' or '.join(HOLDING_RESIDENTS)}"
        )
    if told.path is not None:
        for problem in folder_problems(told.path, run_file.model.context):
            yield f".path: {problem}"
    elif run_file.model.lora is not None:
        yield (
            ".path: with model.lora the policy's weights lie under an adapter, and a reward model "
            "cannot start from them: name the folder of a model, or train it in a run without"
        )
