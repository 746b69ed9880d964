"""Rows under the tag of their reward, and feedback in the loss, against texts made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from manta.envs.episode import Limits
from manta.envs.families.arithmetic import Arithmetic
from manta.envs.families.family import Family
from manta.envs.group import Scoring, run_group
from manta.envs.hindsight import Hindsight, Relabeller, class_of
from manta.envs.protocols import Split, TaskSource
from manta.envs.records import (
    GIVEN,
    LastWord,
    Message,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Span,
    Task,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from manta.envs.render import Renderer
from manta.envs.rewards.exact import Exact
from manta.envs.sources.generator import GeneratedSource
from manta.envs.tokenizer import ByteTokenizer
from manta.envs.transcript import given_trajectory
from tests.unit.envs.scripted import ScriptedEngine
from tests.unit.envs.test_group import draw, speaker
from tests.unit.envs.test_render import CHATML

BYTES = ByteTokenizer()
EOS = BYTES.eos_id
TAGS = ("bad! ", "good ")
LIMITS = Limits(max_new_tokens=8, context=256)
SCORED = Hindsight(TAGS, (0.5,), True)
TASK = Task("sum", (Message("system", "be brief"), Message("user", "3+4?")), "7", "talk")


class Talk(Family):
    """One sum in messages; a wrong answer hears `why?`, a second one `wrong`, and that is that."""

    single_turn = False
    verifier = Exact()

    def source(self, split: Split) -> TaskSource:
        return GeneratedSource(1, lambda i: TASK)

    def gold(self, task: Task) -> str:
        return "7"

    async def reply(self, task: Task, messages: Sequence[Message]) -> Message | None:
        assert messages[:2] == list(TASK.prompt), "the environment knows nothing of tags"
        if messages[-1].content == "7":
            return None
        is_first = sum(message.role == "assistant" for message in messages) == 1
        return Message("user", "why?") if is_first else LastWord("user", "wrong")


async def by_last(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
    return tuple(Score(float(t.artifact == "7"), {}) for t in trajectories)


async def talks(template: str | None, answers: Sequence[str], tag: str = "") -> ScoredGroup:
    """`answers` of the first sample, turn by turn, then those of the second."""
    engine = ScriptedEngine(BYTES, lambda call, sample: answers[call])
    renderer = Renderer(BYTES, template, tag)
    return await run_group(
        Talk(), TASK, renderer, speaker(engine), draw(2), LIMITS, Scoring(by_last)
    )


def parts_of(*parts: tuple[str, bool]) -> tuple[list[int], list[bool]]:
    """Tokens and mask of texts and whether they train; `$` is the end token."""
    ids, mask = [], []
    for text, trains in parts:
        ids += [EOS if c == "$" else ord(c) for c in text]
        mask += [trains] * len(text)
    return ids, mask


def seen(trajectory: Trajectory) -> tuple[list[int], list[bool]]:
    return trajectory.token_ids.tolist(), trajectory.loss_mask.tolist()


def relabelled(
    group: ScoredGroup, hindsight: Hindsight, template: str | None = None, limits: Limits = LIMITS
) -> ScoredGroup:
    return relabeller(hindsight, template, limits).relabelled(group)


def relabeller(
    hindsight: Hindsight, template: str | None = None, limits: Limits = LIMITS
) -> Relabeller:
    renderers = [Renderer(BYTES, template, tag) for tag in hindsight.tags]
    return Relabeller(hindsight, renderers, limits)


CHAT = "<|system|>\n{}be brief<|end|>\n<|user|>\n3+4?<|end|>\n<|assistant|>\n"
PLAIN = "system: {}be brief\nuser: 3+4?\nassistant: "


async def test_a_chat_s_rows_have_their_tags_and_learn_what_was_said_to_them() -> None:
    # Sample 0: wrong, then wrong again; sample 1: right at once
    group = await talks(CHATML, ["1", "22", "7"], tag="good ")
    wrong, right = group.trajectories
    prompt = CHAT.format("good ")
    before = parts_of(
        (prompt, False),
        ("1$", True),
        ("<|end|>\n<|user|>\nwhy?<|end|>\n<|assistant|>\n", False),
        ("22$", True),
        ("<|end|>\n<|user|>\nwrong<|end|>\n", False),
    )
    assert seen(wrong) == before
    assert (wrong.artifact, wrong.env_info["ended"]) == ("22", "environment")
    assert seen(right) == parts_of((prompt, False), ("7$", True))

    learnt = relabelled(group, SCORED, CHATML)
    wanted = parts_of(
        (CHAT.format("bad! "), False),
        ("1$", True),
        ("<|end|>\n<|user|>\nwhy?<|end|>\n<|assistant|>\n", True),
        ("22$", True),
        ("<|end|>\n<|user|>\nwrong<|end|>\n", True),
    )
    assert seen(learnt.trajectories[0]) == wanted
    assert learnt.trajectories[0].logprobs is None
    # What was sampled under the tag that it earned, and heard nothing, is as it was
    assert learnt.trajectories[1] is right and right.logprobs is not None
    assert [s.value for s in learnt.scores] == [0.0, 1.0]
    assert (learnt.id, learnt.task) == (group.id, TASK)
    again = relabelled(learnt, SCORED, CHATML)
    assert again.content_hash() == learnt.content_hash()


async def test_the_plain_template_s_rows() -> None:
    group = await talks(None, ["1", "7", "7"], tag="good ")
    learnt = relabelled(group, SCORED)
    said = ("\nuser: why?\nassistant: ", True)
    assert seen(learnt.trajectories[0]) == parts_of(
        (PLAIN.format("good "), False), ("1$", True), said, ("7$", True)
    ), "right in the end: the prompt stays, and what it heard trains"
    assert learnt.trajectories[0].logprobs is None
    only_tags = relabelled(group, replace(SCORED, trains_feedback=False))
    assert only_tags.trajectories[0] is group.trajectories[0]
    only_feedback = relabelled(group, Hindsight(trains_feedback=True))
    assert seen(only_feedback.trajectories[0]) == seen(learnt.trajectories[0])


async def test_text_prompts_and_everything_that_is_said_of_places_move_with_them() -> None:
    env = Arithmetic(digits=1, eval_size=20)
    task = env.source("train").task(3)
    engine = ScriptedEngine(BYTES, lambda call, sample: ["x", str(task.reference)][sample])
    renderer = Renderer(BYTES, tag="good ")
    group = await run_group(
        env, task, renderer, speaker(engine), draw(2), LIMITS, Scoring(by_answer)
    )
    wrong = group.trajectories[0]
    text = f"good {task.prompt}"
    assert seen(wrong) == parts_of((text, False), ("x$", True))
    start = len(text)
    assert wrong.weight_versions[0] == VersionSpan(start, WeightVersion(0, 0))
    column = np.arange(len(wrong.token_ids), dtype=np.float32)
    score = replace(
        group.scores[0],
        spans=(Span("all", 0, start + 2, 1.0), Span("answer", start, start + 1, 2.0)),
        columns={"said": column},
    )
    reference = ReferenceStatistics("r", tuple(t.logprobs for t in group.trajectories))  # type: ignore[misc]
    group = replace(group, scores=(score, group.scores[1]), reference=reference)
    learnt = relabelled(group, Hindsight(("terrible: ", "good "), (0.5,)))
    row, told = learnt.trajectories[0], learnt.scores[0]
    by = len("terrible: ") - len("good ")
    assert seen(row) == parts_of((f"terrible: {task.prompt}", False), ("x$", True))
    assert [(t.role, t.start, t.end) for t in row.turns] == [
        ("prompt", 0, start + by),
        ("assistant", start + by, start + by + 2),
    ]
    assert row.weight_versions[0] == VersionSpan(start + by, WeightVersion(0, 0))
    assert told.spans == (
        Span("all", 0, start + by + 2, 1.0),
        Span("answer", start + by, start + by + 1, 2.0),
    )
    assert told.columns["said"].tolist() == [0.0] * (start + by) + column[start:].tolist()
    assert learnt.reference is None


async def by_answer(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
    return tuple(Score(float(t.artifact == str(task.reference)), {}) for t in trajectories)


def given(*rewards: float) -> ScoredGroup:
    prompt, answer = Renderer(BYTES).prompt_ids(TASK), Renderer(BYTES).answer_ids("7")
    rows = tuple(given_trajectory(TASK.id, prompt, answer, "7", i) for i in range(len(rewards)))
    scores = tuple(Score(reward, {}) for reward in rewards)
    return ScoredGroup(draw(1).group, TASK, rows, scores, None, {}, {})


def test_given_answers_of_several_classes() -> None:
    classes = Hindsight(("C: ", "B: ", "A: "), (0.0, 1.0))
    learnt = relabelled(given(-1.0, 0.0, 0.5, 1.0, 1.5), classes)
    found = [bytes(t.token_ids[len("system: ") :][:3].tolist()).decode() for t in learnt.rows]
    assert found == ["C: ", "C: ", "B: ", "B: ", "A: "], "above a bound, not at it"
    assert {(t.model, t.logprobs) for t in learnt.rows} == {(GIVEN, None)}
    assert [class_of(reward, classes.bounds) for reward in (-1.0, 0.5, 2.0)] == [0, 1, 2]


def test_a_class_may_have_no_text() -> None:
    learnt = relabelled(given(0.0, 1.0), Hindsight(("", "good "), (0.5,)))
    assert [len(t.token_ids) for t in learnt.rows] == [len(PLAIN) - 2 + 2, len(PLAIN) - 2 + 7]


def test_samples_leave_room_for_every_tag() -> None:
    long = Hindsight(("a very long tag ", "good "), (0.5,))
    renderer = Renderer(BYTES, tag="good ")
    num_prompt = len(renderer.prompt_ids(TASK))
    for context in (128, num_prompt + 14):
        limits = replace(LIMITS, context=context)
        room = relabeller(long, limits=limits).room(TASK, num_prompt)
        assert room == context - len("a very long tag ") + len("good ")
        untagged = relabeller(Hindsight(trains_feedback=True), limits=limits)
        assert untagged.room(TASK, 9) == context
    short = replace(LIMITS, context=num_prompt + 11)
    with pytest.raises(ValueError, match=r"task sum: its prompt has \d+ tokens, a context of \d+"):
        relabeller(long, limits=short).room(TASK, num_prompt)


def test_rows_that_do_not_fit_or_have_no_prompt_name_their_task() -> None:
    long = Hindsight(("a very long tag ", "good "), (0.5,))
    group = given(0.0)
    tight = replace(LIMITS, context=len(PLAIN) - 2 + 17)
    with pytest.raises(ValueError, match=r"sample 0 has \d+ tokens under the tag of its reward"):
        relabelled(group, long, limits=tight)
    bare = replace(group, trajectories=(replace(group.trajectories[0], turns=()),))
    with pytest.raises(ValueError, match="does not say which of its tokens are the prompt"):
        relabelled(bare, long)
    # Without tags nobody asks
    assert relabelled(bare, Hindsight(trains_feedback=True)).trajectories == bare.trajectories


async def test_the_last_word_is_cut_to_what_the_context_leaves() -> None:
    env = Arithmetic(digits=1, eval_size=20, last_word=True)
    task = env.source("train").task(3)
    assert not env.single_turn
    length = len(task.prompt) + 2
    for room, heard in ((0, ""), (3, "\nus"), (40, "\nuser: no\n")):
        engine = ScriptedEngine(BYTES, lambda call, sample: "x")
        limits = replace(LIMITS, context=length + room)
        group = await run_group(
            env, task, Renderer(BYTES), speaker(engine), draw(1), limits, Scoring(by_answer)
        )
        [row] = group.trajectories
        assert seen(row) == parts_of((str(task.prompt), False), ("x$", True), (heard, False))
        assert (row.finish_reason, row.artifact, len(engine.requests)) == ("stop", "x", 1)
