"""The companion of a group: one more row of a prompt, beside the policy's samples.

Owns how it is made. What an algorithm makes of it is `manta.algorithms`'; what a run measures of
samples leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from manta.envs.episode import Limits, Speaker, finished, given_episode, prompt_ids, run_episode
from manta.envs.protocols import Env
from manta.envs.records import COMPANION, CompanionKind, GenerateRequest, Task, Trajectory
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
) -> Trajectory:
    """The trajectory of `COMPANION`. `greedy`: the speaker's at temperature 0, by the engines and
    under the weights that make the samples (ReMax, arXiv 2310.10505). `given`: the environment's
    gold answer. The other arguments are those of `run_episode`.

    Raises ValueError where there is no gold answer or it does not fit the context, WorldBroke where
    the engine aborted.
    """
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
