"""Episodes: one sample of a task from its prompt to its end.

Owns how turns follow each other and what bounds them. The samples of a task together, their
scores and what happens when one breaks are `manta.envs.group`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manta.envs.chat_template import POLICY
from manta.envs.failures import WorldBroke
from manta.envs.protocols import Env, Generate
from manta.envs.records import (
    COMPANION,
    Completion,
    FinishReason,
    GenerateRequest,
    Int32,
    LastWord,
    Message,
    Sampling,
    Task,
    Trajectory,
)
from manta.envs.render import Renderer
from manta.envs.transcript import Transcript, given_trajectory


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a trajectory, in tokens: `max_new_tokens` counts the policy's over all turns,
    `context` all of them. `max_turns` counts the policy's turns.

    Raises ValueError where a bound leaves no room for a token.
    """

    max_new_tokens: int
    context: int
    max_turns: int = 16

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.max_turns < 1 or self.context < 2:
            raise ValueError(f"{self}: max_new_tokens and max_turns are >= 1, context >= 2")


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks in an episode: `generate` finds an engine, `model` names the policy behind it."""

    generate: Generate
    sampling: Sampling
    model: str = "policy"


def prompt_ids(task: Task, renderer: Renderer, limits: Limits) -> Int32:
    """int32[P] with P < context.

    Raises ValueError where the prompt leaves no room for an answer token.
    """
    prompt = renderer.prompt_ids(task)
    if len(prompt) > limits.context - 1:
        raise ValueError(
            f"task {task.id}: its prompt has {len(prompt)} tokens, a context of {limits.context} "
            f"leaves room for {limits.context - 1}: raise model.context or filter the tasks"
        )
    return prompt


def finished(
    task: Task,
    prompt: Int32,
    completion: Completion,
    sample: int,
    speaker: Speaker,
    renderer: Renderer,
) -> Trajectory:
    """The trajectory of a single-turn episode.

    Raises WorldBroke where the engine aborted the sample.
    """
    transcript = Transcript(prompt)
    _hear_policy(transcript, task, completion, sample)
    artifact = renderer.decode(completion.token_ids)
    return transcript.finish(task.id, sample, speaker.model, completion.finish_reason, artifact, {})


def given_episode(
    task: Task, renderer: Renderer, limits: Limits, answer: str, sample: int, what: str
) -> Trajectory:
    """The written `answer` as an episode that nobody sampled: it and its end token train.

    Raises ValueError, naming it as `what`, where it does not fit the context.
    """
    prompt = prompt_ids(task, renderer, limits)
    try:
        ids = renderer.answer_ids(answer)
    except ValueError as error:
        raise ValueError(f"task {task.id}, {what}: {error}") from error
    if len(prompt) + len(ids) > limits.context:
        raise ValueError(
            f"task {task.id}: prompt and {what} have {len(prompt)} + {len(ids)} tokens, more "
            f"than the context of {limits.context}: raise model.context or filter the tasks"
        )
    return given_trajectory(task.id, prompt, ids, answer, sample)


async def run_episode(
    env: Env,
    task: Task,
    renderer: Renderer,
    speaker: Speaker,
    *,
    sample: int,
    seed: Callable[[int], int],
    budget: int,
    limits: Limits,
    session: str = "",
) -> Trajectory:
    """One sample of `task`, turn by turn; `seed(turn)` is the seed of each turn's request, and
    `session` what the requests of the task's samples are known by.

    Every turn continues the tokens so far. The episode ends when the environment has nothing to
    say, or has said its last word, cut to what the context leaves (both `stop`), or when a bound is
    hit (`length`): the token `budget`, the context, or the number of turns. `env_info` says how
    many turns there were and what ended it.
    Raises WorldBroke where the engine aborted.
    """
    transcript = Transcript(prompt_ids(task, renderer, limits))
    messages = list(_messages(task))
    for turn in range(limits.max_turns):
        room = min(budget - transcript.num_generated, limits.context - transcript.length)
        completion = await _next(speaker, transcript.token_ids, seed(turn), room, session)
        text = renderer.decode(completion.token_ids)
        _hear_policy(transcript, task, completion, sample, text)
        messages.append(Message(POLICY, text))
        reason: FinishReason = "length"
        ended = "tokens"
        if completion.finish_reason == "length":
            break
        reply = await env.reply(task, messages)
        if reply is None or isinstance(reply, LastWord):
            reason, ended = "stop", "environment"
            if reply is not None:
                _hear_last(transcript, renderer, reply, limits)
            break
        if turn + 1 == limits.max_turns:
            ended = "turns"
            break
        added = renderer.reply_ids(reply, after=int(transcript.token_ids[-1]))
        if transcript.length + len(added) >= limits.context or transcript.num_generated >= budget:
            break
        messages.append(reply)
        transcript.hear(reply.role, added, reply.content)
    return transcript.finish(
        task.id,
        sample,
        speaker.model,
        reason,
        messages[-1].content,
        {"num_turns": float(turn + 1), "ended": ended},
    )


async def _next(
    speaker: Speaker, prefix: Int32, seed: int, budget: int, session: str
) -> Completion:
    request = GenerateRequest(prefix, (seed,), (budget,), speaker.sampling, session=session)
    [[completion]] = await speaker.generate([request])
    return completion


def _hear_policy(
    transcript: Transcript, task: Task, completion: Completion, sample: int, text: str = ""
) -> None:
    if completion.finish_reason == "abort":
        which = "the greedy sample" if sample == COMPANION else f"sample {sample}"
        raise WorldBroke(f"task {task.id}: the engine aborted {which}")
    transcript.say(completion, text)


def _hear_last(transcript: Transcript, renderer: Renderer, reply: LastWord, limits: Limits) -> None:
    after = int(transcript.token_ids[-1])
    added = renderer.reply_ids(reply, after, opens_turn=False)
    added = added[: limits.context - transcript.length]
    if len(added):
        transcript.hear(reply.role, added, reply.content)


def _messages(task: Task) -> Sequence[Message]:
    return (Message("user", task.prompt),) if isinstance(task.prompt, str) else task.prompt
