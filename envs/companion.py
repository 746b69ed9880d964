"""The companion of a group: one more row of a prompt, beside the policy's samples.

Owns how it is made. What an algorithm makes of it is `manta.algorithms`'; what a run measures of
samples leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from manta.envs.episode import Limits, Speaker, finished, given_episode, prompt_ids, run_episode
from manta.envs.protocols import Env, ScoreReference
from manta.envs.records import (
    COMPANION,
    WRITTEN,
    CompanionKind,
    Float32,
    GenerateRequest,
    Int32,
    ReferenceStatistics,
    Task,
    Trajectory,
)
from manta.envs.render import Renderer


async def make_companion(
    kind: CompanionKind,
    env: Env,
    task: Task,
    renderer: Renderer,
    speaker: Speaker,
    *,
    seed: Callable[[int], int],
    budget: int,
    limits: Limits,
    session: str,
    written: Trajectory | None = None,
) -> Trajectory:
    """The trajectory of `COMPANION`. `greedy`: the speaker's at temperature 0, by the engines and
    under the weights that make the samples (ReMax, arXiv 2310.10505). `given`: the environment's
    gold answer. `written`: the sample `written` of another stage (`manta.envs.written_samples`).
    The other arguments are those of `run_episode`.

    Raises ValueError where there is no gold answer or it does not fit the context, or where what
    was written does not begin with the prompt, WorldBroke where the engine aborted.
    """
    if kind == "written":
        assert written is not None, "a lane that needs one has a folder of them"
        return _beside(task, prompt_ids(task, renderer, limits), written)
    if kind == "given":
        return given_episode(task, renderer, limits, env.gold(task), COMPANION, "gold answer")
    greedy = replace(speaker, sampling=replace(speaker.sampling, temperature=0.0))
    if not env.single_turn:
        return await run_episode(
            env,
            task,
            renderer,
            greedy,
            sample=COMPANION,
            seed=seed,
            budget=budget,
            limits=limits,
            session=session,
        )
    prompt = prompt_ids(task, renderer, limits)
    request = GenerateRequest(prompt, (seed(0),), (budget,), greedy.sampling)
    [[completion]] = await greedy.generate([request])
    return finished(task, prompt, completion, COMPANION, greedy, renderer)


def _beside(task: Task, prompt: Int32, written: Trajectory) -> Trajectory:
    """The row without log-probs and versions: nobody sampled it in this stage."""
    if not np.array_equal(written.token_ids[: len(prompt)], prompt):
        raise ValueError(
            f"task {task.id}: its written sample begins with other tokens than its prompt: let "
            "both stages have the same environment"
        )
    return replace(written, sample=COMPANION, model=WRITTEN, logprobs=None, weight_versions=())


async def reference_statistics(
    reference: ScoreReference, samples: Sequence[Trajectory], companion: Trajectory | None
) -> tuple[ReferenceStatistics, Float32 | None]:
    """Of the samples, and of a companion that they are compared with: of a written one."""
    if companion is None or companion.model != WRITTEN:
        return await reference(samples), None
    looked = await reference([*samples, companion])
    return ReferenceStatistics(looked.version, looked.logprobs[:-1]), looked.logprobs[-1]
