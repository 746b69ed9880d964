import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from manta.envs.chat_template import POLICY
from manta.envs.episode import Limits, Speaker
from manta.envs.failures import GroupBroken, WorldBroke
from manta.envs.families.arithmetic import Arithmetic
from manta.envs.families.family import Family
from manta.envs.group import Draw, Scoring, given_group, run_group
from manta.envs.protocols import Split, TaskSource
from manta.envs.records import (
    GIVEN,
    Completion,
    GenerateRequest,
    GroupId,
    Message,
    ReferenceStatistics,
    Sampling,
    Score,
    Task,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from manta.envs.render import Renderer
from manta.envs.rewards.exact import Exact
from manta.envs.sources.generator import GeneratedSource
from manta.envs.summaries import summarise
from manta.envs.tokenizer import ByteTokenizer, CharTokenizer
from tests.unit.envs.scripted import ABORT, ScriptedEngine

RENDERER = Renderer(ByteTokenizer())
EOS = ByteTokenizer.eos_id
ID = GroupId(1, 5, 0)
LIMITS = Limits(max_new_tokens=8, context=64)


class Guess(Family):
    """Guess 7 within several turns; the environment answers `more` or breaks on `crash`."""

    single_turn = False
    verifier = Exact()

    def source(self, split: Split) -> TaskSource:
        return GeneratedSource(1, lambda i: Task("guess", "n? ", "7", "guess"))

    def gold(self, task: Task) -> str:
        return "7"

    async def reply(self, task: Task, messages: Sequence[Message]) -> Message | None:
        assert messages[-1].role == POLICY
        if messages[-1].content == "crash":
            raise WorldBroke("the game server is gone")
        return None if messages[-1].content == "7" else Message("game", "more")


class Halved(Arithmetic):
    """The second half of a group gets half of the budget."""

    def budgets(self, task: Task, num_samples: int, max_new_tokens: int) -> tuple[int, ...]:
        half = num_samples // 2
        return (max_new_tokens,) * (num_samples - half) + (max_new_tokens // 2,) * half


async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
    values = [float(t.artifact == str(task.reference)) for t in trajectories]
    return tuple(Score(value, {"correct": value}) for value in values)


async def lengths(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
    return ReferenceStatistics(
        "ref", tuple(np.full(len(t.token_ids), i, np.float32) for i, t in enumerate(trajectories))
    )


SCORING = Scoring(score, {"correct": "exact()#0"})


def draw(num_samples: int, min_samples: int = 1, group: GroupId = ID) -> Draw:
    return Draw(group, 3, "rl/train", num_samples, min_samples)


def speaker(engine: ScriptedEngine) -> Speaker:
    return Speaker(engine.generate, Sampling(temperature=0.7))


def sums() -> tuple[Arithmetic, Task]:
    env = Arithmetic()
    return env, env.source("train").task(0)


async def test_single_turn_group_is_one_request() -> None:
    env, task = sums()
    answers = [str(task.reference), "0", str(task.reference)]
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: answers[sample])
    group = await run_group(env, task, RENDERER, speaker(engine), draw(3), LIMITS, SCORING)

    [request] = engine.requests
    assert request.budgets == (8, 8, 8)
    assert len(set(request.seeds)) == 3
    assert request.sampling.temperature == 0.7
    prompt = RENDERER.prompt_ids(task)
    assert request.prefix.tolist() == prompt.tolist()
    assert [s.value for s in group.scores] == [1.0, 0.0, 1.0]
    assert group.reward_versions == {"correct": "exact()#0"}
    assert set(group.timings) == {"generate", "score"}

    first = group.trajectories[0]
    answer = RENDERER.answer_ids(answers[0])
    assert first.token_ids.tolist() == [*prompt, *answer]
    assert first.loss_mask.tolist() == [False] * len(prompt) + [True] * len(answer)
    assert first.logprobs is not None
    assert first.logprobs.tolist() == [0.0] * len(prompt) + [-1.0 - i for i in range(len(answer))]
    start = len(prompt)
    assert first.weight_versions == (
        VersionSpan(start, WeightVersion(0, 0)),
        VersionSpan(start + (len(answer) + 1) // 2, WeightVersion(1, 0)),
    )
    assert [turn.role for turn in first.turns] == ["prompt", POLICY]
    assert (first.finish_reason, first.artifact, first.model) == ("stop", answers[0], "policy")
    summary = summarise(group)
    assert summary.num_tokens.tolist() == [len(answer), 2, len(answer)]
    assert (summary.oldest, summary.newest) == (WeightVersion(0, 0), WeightVersion(1, 0))


async def test_retries_draw_the_same_and_other_places_other_samples() -> None:
    env, task = sums()
    seeds = []
    for group in (ID, GroupId(1, 5, 1), GroupId(2, 5, 0)):
        engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "1")
        await run_group(env, task, RENDERER, speaker(engine), draw(2, group=group), LIMITS, SCORING)
        seeds.append(engine.requests[0].seeds)
    assert seeds[0] == seeds[1]
    assert set(seeds[0]).isdisjoint(seeds[2])


async def test_truncated_samples_and_budgets_by_sample() -> None:
    _, task = sums()
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "12345")
    group = await run_group(Halved(), task, RENDERER, speaker(engine), draw(3), LIMITS, SCORING)
    assert engine.requests[0].budgets == (8, 8, 4)
    assert [t.finish_reason for t in group.trajectories] == ["stop", "stop", "length"]
    assert group.trajectories[2].artifact == "1234"
    assert summarise(group).is_truncated.tolist() == [False, False, True]


async def test_the_context_bounds_the_budget() -> None:
    env, task = sums()
    prompt = len(RENDERER.prompt_ids(task))
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "12345")
    limits = Limits(max_new_tokens=8, context=prompt + 3)
    group = await run_group(env, task, RENDERER, speaker(engine), draw(1), limits, SCORING)
    assert engine.requests[0].budgets == (3,)
    assert len(group.trajectories[0].token_ids) == prompt + 3


async def test_prompt_longer_than_the_context_names_task_and_lengths() -> None:
    env, task = sums()
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "1")
    with pytest.raises(
        ValueError, match=rf"task {task.id}.*6 tokens, a context of 6".replace("+", r"\+")
    ):
        await run_group(env, task, RENDERER, speaker(engine), draw(1), Limits(8, 6), SCORING)
    assert engine.requests == []


async def test_aborted_samples_are_dropped_and_keep_the_others_places() -> None:
    env, task = sums()
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: ABORT if sample == 1 else "1")
    group = await run_group(env, task, RENDERER, speaker(engine), draw(3, 2), LIMITS, SCORING)
    assert [t.sample for t in group.trajectories] == [0, 2]
    assert len(group.scores) == 2
    with pytest.raises(GroupBroken, match=r"group 1.5.0.*2 of 3.*aborted sample 1"):
        await run_group(env, task, RENDERER, speaker(engine), draw(3, 3), LIMITS, SCORING)


async def test_unscored_samples_are_dropped_with_their_reference() -> None:
    async def half(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        values = [float("nan") if t.sample == 0 else 1.0 for t in trajectories]
        return tuple(Score(value, {}, note="judge: no answer within 1 s") for value in values)

    env, task = sums()
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "1")
    scoring = Scoring(half, {}, lengths)
    group = await run_group(env, task, RENDERER, speaker(engine), draw(2), LIMITS, scoring)
    assert [t.sample for t in group.trajectories] == [1]
    assert group.reference is not None
    assert [column[0] for column in group.reference.logprobs] == [1.0]
    assert set(group.timings) == {"generate", "score", "reference", "referenced_at"}
    with pytest.raises(GroupBroken, match="first reason: judge: no answer"):
        await run_group(env, task, RENDERER, speaker(engine), draw(2, 2), LIMITS, scoring)


async def test_a_failing_score_ends_the_reference_pass() -> None:
    ended = asyncio.Event()

    async def fail(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        raise KeyError("bug")

    async def slow(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return await lengths(trajectories)

    env, task = sums()
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "1")
    with pytest.raises(KeyError, match="bug"):
        await run_group(
            env, task, RENDERER, speaker(engine), draw(1), LIMITS, Scoring(fail, {}, slow)
        )
    assert ended.is_set()


async def test_several_turns_continue_the_tokens_so_far() -> None:
    env = Guess()
    task = env.source("train").task(0)
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: ["3", "7"][call])
    group = await run_group(env, task, RENDERER, speaker(engine), draw(1), LIMITS, SCORING)
    [trajectory] = group.trajectories
    reply = RENDERER.reply_ids(Message("game", "more")).tolist()
    prompt = RENDERER.prompt_ids(task).tolist()
    said = [ord("3"), EOS], [ord("7"), EOS]

    first, second = engine.requests
    assert second.prefix.tolist() == [*prompt, *said[0], *reply]
    assert first.seeds != second.seeds
    assert (first.budgets, second.budgets) == ((8,), (6,))
    assert trajectory.token_ids.tolist() == [*prompt, *said[0], *reply, *said[1]]
    mask = [False] * len(prompt) + [True] * 2 + [False] * len(reply) + [True] * 2
    assert trajectory.loss_mask.tolist() == mask
    assert trajectory.logprobs is not None
    assert trajectory.logprobs[trajectory.loss_mask].tolist() == [-1, -2, -1, -2]
    assert not trajectory.logprobs[~trajectory.loss_mask].any()
    assert [t.role for t in trajectory.turns] == ["prompt", POLICY, "game", POLICY]
    assert [t.start for t in trajectory.turns[1:]] == [t.end for t in trajectory.turns[:-1]]
    start = len(prompt)
    again = start + 2 + len(reply)
    assert trajectory.weight_versions == (
        VersionSpan(start, WeightVersion(0, 0)),
        VersionSpan(start + 1, WeightVersion(1, 0)),
        VersionSpan(again + 1, WeightVersion(2, 0)),
    )
    assert trajectory.artifact == "7"
    assert trajectory.finish_reason == "stop"
    assert trajectory.env_info == {"num_turns": 2.0, "ended": "environment"}
    assert group.scores[0].value == 1.0


@pytest.mark.parametrize(
    ("limits", "num_turns", "ended"),
    [
        (Limits(max_new_tokens=5, context=200), 3, "tokens"),
        (Limits(max_new_tokens=4, context=200), 2, "tokens"),
        (Limits(max_new_tokens=50, context=200, max_turns=4), 4, "turns"),
        (Limits(max_new_tokens=50, context=40), 2, "tokens"),
    ],
)
async def test_bounds_end_an_episode_of_several_turns(
    limits: Limits, num_turns: int, ended: str
) -> None:
    env = Guess()
    task = env.source("train").task(0)
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "3")
    group = await run_group(env, task, RENDERER, speaker(engine), draw(1), limits, SCORING)
    [trajectory] = group.trajectories
    assert trajectory.env_info == {"num_turns": float(num_turns), "ended": ended}
    assert trajectory.finish_reason == "length"
    assert trajectory.turns[-1].role == POLICY
    assert len(trajectory.token_ids) <= limits.context
    assert int(trajectory.loss_mask.sum()) <= limits.max_new_tokens
    assert trajectory.artifact == "3"


async def test_episodes_run_side_by_side_and_broken_ones_are_dropped() -> None:
    env = Guess()
    task = env.source("train").task(0)
    says = ["7", "crash", ABORT, "7"]
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: says[call])
    group = await run_group(env, task, RENDERER, speaker(engine), draw(4, 2), LIMITS, SCORING)
    assert [t.sample for t in group.trajectories] == [0, 3]
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: says[call])
    with pytest.raises(GroupBroken, match="first reason: the game server is gone"):
        await run_group(env, task, RENDERER, speaker(engine), draw(4, 3), LIMITS, SCORING)


async def test_no_episode_waits_for_another() -> None:
    env = Guess()
    task = env.source("train").task(0)
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "7")
    together = asyncio.Barrier(3)

    async def generate(requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        await asyncio.wait_for(together.wait(), 5)
        return await engine.generate(requests)

    all_at_once = Speaker(generate, Sampling())
    group = await run_group(env, task, RENDERER, all_at_once, draw(3, 3), LIMITS, SCORING)
    assert len({request.seeds for request in engine.requests}) == len(group.trajectories) == 3


async def test_given_answers_train_without_logprobs() -> None:
    env, task = sums()
    group = await given_group(env, task, RENDERER, ID, LIMITS, Scoring(score, {}, lengths))
    [trajectory] = group.trajectories
    prompt, answer = RENDERER.prompt_ids(task), RENDERER.answer_ids(env.gold(task))
    assert trajectory.token_ids.tolist() == [*prompt, *answer]
    assert trajectory.loss_mask.tolist() == [False] * len(prompt) + [True] * len(answer)
    assert (trajectory.model, trajectory.logprobs) == (GIVEN, None)
    assert trajectory.weight_versions == ()
    assert group.scores[0].value == 1.0
    assert group.reference is not None
    assert summarise(group).oldest is None


async def test_given_answer_longer_than_the_context() -> None:
    env, task = sums()
    with pytest.raises(ValueError, match=r"prompt and gold answer have \d+ \+ \d+ tokens"):
        await given_group(env, task, RENDERER, ID, Limits(8, 7), SCORING)


async def test_given_answer_that_the_tokenizer_cannot_write() -> None:
    env, task = sums()
    renderer = Renderer(CharTokenizer("".join(sorted(set(str(task.prompt))))))
    missing = next(c for c in "0123456789" if c not in str(task.prompt))
    with pytest.raises(ValueError, match=f"task .*, gold answer: character '{missing}'"):
        await given_group(env, replace(task, reference=missing), renderer, ID, LIMITS, SCORING)


def test_limits_and_draws_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="min_samples is 5"):
        draw(4, 5)
    with pytest.raises(ValueError, match="max_new_tokens"):
        Limits(0, 10)


async def test_budgets_out_of_bounds_are_refused() -> None:
    class Wrong(Arithmetic):
        def budgets(self, task: Task, num_samples: int, max_new_tokens: int) -> tuple[int, ...]:
            return (0,) * num_samples

    _, task = sums()
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "1")
    with pytest.raises(ValueError, match=r"budgets \(0, 0\) must be 2 numbers in 1..8"):
        await run_group(Wrong(), task, RENDERER, speaker(engine), draw(2), LIMITS, SCORING)


async def test_redundant_samples_are_cut_off_and_told() -> None:
    """Two of four are wanted: three ended at once, one was cut by the engine."""
    env, task = sums()
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: ABORT if sample == 0 else "12")
    drawn = replace(draw(2), redundant=2)
    group = await run_group(env, task, RENDERER, speaker(engine), drawn, LIMITS, SCORING)
    [request] = engine.requests
    assert (request.enough, len(request.seeds), len(request.budgets)) == (2, 4, 4)
    assert [t.sample for t in group.trajectories] == [1, 2]
    assert len(group.scores) == 2
    assert group.cut_off == (0, 3)
    assert summarise(group).cut_off == (0, 3)
    plain = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "12")
    group = await run_group(env, task, RENDERER, speaker(plain), draw(2), LIMITS, SCORING)
    assert plain.requests[0].enough is None
    assert plain.requests[0].seeds == request.seeds[:2]
    assert group.cut_off == ()


async def test_redundant_samples_want_a_single_turn() -> None:
    env = Guess()
    task = env.source("train").task(0)
    engine = ScriptedEngine(RENDERER.tokenizer, lambda call, sample: "7")
    drawn = replace(draw(2), redundant=1)
    with pytest.raises(ValueError, match=r"several turns.*redundant_samples to 0"):
        await run_group(env, task, RENDERER, speaker(engine), drawn, LIMITS, SCORING)
    with pytest.raises(ValueError, match="redundant samples are -1"):
        replace(draw(2), redundant=-1)
