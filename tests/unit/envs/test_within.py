"""From what components say of parts of a trajectory to rewards at its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from manta.envs.chat_template import POLICY
from manta.envs.episode import Limits, Speaker
from manta.envs.failures import RewardFailed, WorldBroke
from manta.envs.families.arithmetic import Arithmetic
from manta.envs.group import Draw, Scoring, run_group
from manta.envs.protocols import Services
from manta.envs.records import (
    TOKEN_REWARDS,
    Detail,
    Float32,
    GroupId,
    Sampling,
    Span,
    Task,
    Trajectory,
    Turn,
)
from manta.envs.registry import build
from manta.envs.render import Renderer
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.exact import Exact
from manta.envs.rewards.formula import Formula
from manta.envs.tokenizer import ByteTokenizer
from tests.unit.envs.scripted import ScriptedEngine, said, task

SERVICES = Services()
TALK = replace(
    said("7", 9),
    task_id="t9",
    sample=3,
    turns=(
        Turn("prompt", 0, 2),
        Turn(POLICY, 2, 5, "3"),
        Turn("user", 5, 8, "no"),
        Turn(POLICY, 8, 11, "7"),
    ),
)
"""11 tokens, of which the policy says 2:5 and 8:11."""


class Parts:
    """Gives what it is told to."""

    version = "parts#1"
    rewards_within = True

    def __init__(self, *spans: Span, value: float | None = 0.5, column: Float32 | None = None):
        self._detail = Detail(value, spans, column)

    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> Detail:
        return self._detail


class OfGroup(Parts):
    async def score_group(
        self, task: Task, trajectories: Sequence[Trajectory], services: Services
    ) -> list[Detail | None]:
        return [self._detail if t.artifact == "7" else None for t in trajectories]

    score = None  # type: ignore[assignment]


class Gone(Parts):
    async def score(self, task: Task, trajectory: Trajectory, services: Services) -> Detail:
        raise WorldBroke("the judge is gone")


def columns(length: int = 11, **at: float) -> Float32:
    values = np.zeros(length, np.float32)
    for name, value in at.items():
        values[int(name[1:])] = value
    return values


async def test_spans_and_columns_are_weighed_into_one() -> None:
    steps = Parts(Span("step", 2, 4, 1.0), Span("step", 4, 5, -2.0), Span("tool", 5, 8, 0.5))
    words = Parts(column=columns(t4=1.0, t10=3.0), value=None)
    other = Parts(Span("turn", 8, 11, 9.0), column=columns(t0=1.0))
    composition = Composition(
        Formula("steps"),
        {"steps": steps, "words": words, "other": other},
        within={"steps": 2.0, "words": -1.0},
    )
    [score] = await composition.score_group(task(), [TALK], SERVICES)
    assert score.value == 0.5
    assert score.components == {"steps": 0.5, "other": 0.5}
    wanted = columns(t3=2.0, t4=-4.0 - 1.0, t7=1.0, t10=-3.0)
    assert score.columns[TOKEN_REWARDS].dtype == np.float32
    assert score.columns[TOKEN_REWARDS].tolist() == wanted.tolist()
    # What has no weight is kept beside it, as it came; what has is in the sum alone
    assert set(score.columns) == {TOKEN_REWARDS, "other"}
    assert score.spans == (
        Span("steps/step", 2, 4, 1.0),
        Span("steps/step", 4, 5, -2.0),
        Span("steps/tool", 5, 8, 0.5),
        Span("other/turn", 8, 11, 9.0),
    )


async def test_a_component_of_the_group_that_does_not_apply_pays_nothing() -> None:
    composition = Composition(
        Formula("2"), {"own": OfGroup(Span("turn", 0, 2, 1.0))}, within={"own": 1.0}
    )
    scores = await composition.score_group(task(), [said("7"), said("8")], SERVICES)
    assert [score.columns[TOKEN_REWARDS].sum() for score in scores] == [1.0, 0.0]
    assert [score.components for score in scores] == [{"own": 0.5}, {}]


async def test_without_weights_there_are_no_rewards_within() -> None:
    composition = Composition(Formula("own"), {"own": Parts(Span("turn", 2, 5, 1.0))})
    [score] = await composition.score_group(task(), [TALK], SERVICES)
    assert not score.columns and len(score.spans) == 1


async def test_a_sample_without_the_rewards_that_are_weighed_is_lost() -> None:
    components = {"correct": Exact(), "own": Gone()}
    whole = Composition(Formula("correct"), components)
    [score] = await whole.score_group(task(), [TALK], SERVICES)
    assert score.value == 1.0
    [score] = await Composition(Formula("correct"), components, within={"own": 1.0}).score_group(
        task(), [TALK], SERVICES
    )
    assert math.isnan(score.value) and score.note == "own: the judge is gone"


BROKEN = {
    "span of tokens 5:5, task t9, sample 3": Parts(Span("span", 5, 5, 1.0)),
    "span of tokens 5:12, .* the trajectory has 11 tokens": Parts(Span("span", 5, 12, 1.0)),
    "tokens 2:5 the value nan, task t9, sample 3": Parts(Span("turn", 2, 5, math.nan)),
    "tokens 2:5 the value 1e.39": Parts(Span("turn", 2, 5, 1e39)),
    "gave inf, task t9, sample 3: a reward must": Parts(value=math.inf),
    r"gave a column float32\[3\], task t9, sample 3": Parts(column=columns(3)),
    r"a column float64\[11\]": Parts(column=np.zeros(11)),  # type: ignore[arg-type]
    "gave nan for token 4, task t9, sample 3": Parts(column=columns(t4=math.nan)),
}


@pytest.mark.parametrize("told", list(BROKEN))
async def test_a_part_that_could_not_train_names_component_task_and_sample(told: str) -> None:
    composition = Composition(Formula("1"), {"own": BROKEN[told]})
    pattern = told if "span of" not in told else told.replace("span of", "'span' of")
    with pytest.raises(RewardFailed, match=f"reward 'own' gave .*{pattern.removeprefix('gave ')}"):
        await composition.score_group(task(), [TALK], SERVICES)


async def test_a_sum_that_no_float32_holds_names_components_and_sample() -> None:
    composition = Composition(
        Formula("1"), {"own": Parts(Span("turn", 2, 5, 1e38))}, within={"own": 1e3}
    )
    with pytest.raises(RewardFailed, match=r"of \['own'\] within task t9, sample 3"):
        await composition.score_group(task(), [TALK], SERVICES)


async def test_a_component_that_gives_a_number_alone_is_refused() -> None:
    class Whole(Exact):
        rewards_within = True

    composition = Composition(Formula("own"), {"own": Whole()}, within={"own": 1.0})
    with pytest.raises(RewardFailed, match=r"'own' gave 1.0 for the whole, task t9, sample 3"):
        await composition.score_group(task(), [TALK], SERVICES)
    with pytest.raises(ValueError, match=r"'correct' \(Exact\) says nothing of parts"):
        Composition(Formula("1"), {"correct": Exact()}, within={"correct": 1.0})
    with pytest.raises(ValueError, match="there is no component 'x'"):
        Composition(Formula("1"), {"correct": Exact()}, within={"x": 1.0})


async def test_a_rule_is_asked_of_every_turn() -> None:
    reward = build("reward", "by_turn", {"rule": "exact"})
    detail = await reward.score(task(), TALK, SERVICES)  # type: ignore[union-attr]
    assert detail == Detail(0.5, (Span("turn", 2, 5, 0.0), Span("turn", 8, 11, 1.0)))
    # An episode of one turn has its words as its artifact alone
    detail = await reward.score(task(), said("7", 4), SERVICES)  # type: ignore[union-attr]
    assert detail == Detail(1.0, (Span("turn", 2, 6, 1.0),))
    silent = replace(TALK, turns=TALK.turns[:1])
    assert await reward.score(task(), silent, SERVICES) is None  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", ["length", "distinct"])
def test_only_rules_of_a_text_can_be_asked_of_turns(rule: str) -> None:
    options = {"target": 1, "limit": 2} if rule == "length" else {}
    with pytest.raises(ValueError, match=f"rule '{rule}' does not judge a text by itself"):
        build("reward", "by_turn", {"rule": rule, **options})


async def test_arithmetic_in_several_tries() -> None:
    """Wrong, wrong and right; right at once; wrong to the end, which the budget cuts."""
    env = Arithmetic(digits=1, eval_size=20, tries=3)
    renderer = Renderer(ByteTokenizer())
    first = env.source("train").task(0)
    right = str(first.reference)
    says = [["x", "y", right], [right], ["x", "x", "long wrong answer"]]

    async def talk(texts: list[str]) -> tuple[list[str], list[Span], float]:
        engine = ScriptedEngine(renderer.tokenizer, lambda call, sample: texts[call])
        composition = Composition(
            Formula("correct"),
            {"correct": Exact(), "tries": build("reward", "by_turn", {"rule": "exact"})},
            within={"tries": 0.5},
        )
        group = await run_group(
            env,
            first,
            renderer,
            Speaker(engine.generate, Sampling()),
            Draw(GroupId(0, 0, 0), 0, "x", 1),
            Limits(max_new_tokens=12, context=200),
            Scoring(lambda task, made: composition.score_group(task, made, SERVICES)),
        )
        [trajectory], [score] = group.trajectories, group.scores
        paid = score.columns[TOKEN_REWARDS]
        for span in score.spans:
            assert paid[span.end - 1] == 0.5 * span.value
            assert trajectory.loss_mask[span.start : span.end].all()
        texts_of_turns = [turn.text for turn in trajectory.turns[1:]]
        assert trajectory.turns[0].text == ""
        return texts_of_turns, list(score.spans), float(paid.sum())

    texts, spans, paid = await talk(says[0])
    assert texts == ["x", "no", "y", "no", right] and paid == 0.5
    assert [span.value for span in spans] == [0.0, 0.0, 1.0]
    texts, spans, paid = await talk(says[1])
    assert texts == [right] and paid == 0.5 and len(spans) == 1
    texts, spans, paid = await talk(says[2])
    assert len(spans) == 3 and paid == 0.0 and texts[-1] == "long wrong answer"[:8]
