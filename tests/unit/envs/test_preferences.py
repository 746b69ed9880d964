"""Pairs of answers from files, and the groups that are made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from manta.envs.episode import Limits
from manta.envs.families.preferences import Preferences
from manta.envs.group import Scoring, compared_group
from manta.envs.records import (
    GIVEN,
    GroupId,
    Message,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Task,
    Trajectory,
)
from manta.envs.render import Renderer
from manta.envs.summaries import summarise
from manta.envs.tokenizer import ByteTokenizer
from tests.data import shared_data

ROWS: list[dict[str, object]] = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "five"},
    {"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": 0.5},
    {
        "prompt": [{"role": "user", "content": "Hello"}],
        "chosen": [{"role": "assistant", "content": "Hi!"}],
        "rejected": "",
    },
    {"prompt": "held out", "chosen": "a", "rejected": "b"},
]


def env_of(folder: Path, rows: Sequence[Mapping[str, object]] = ROWS) -> Preferences:
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Preferences(str(folder / "pairs.jsonl"), eval_size=1)


def test_rows_become_tasks_with_two_answers(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    source = env.source("train")
    assert (len(source), len(env.source("eval"))) == (3, 1)
    texts = [[answer.text for answer in env.answers(source.task(i))] for i in range(3)]
    assert texts == [["4", "five"], ["2", "3"], ["Hi!", ""]]
    assert [answer.reward for answer in env.answers(source.task(0))] == [1.0, 0.0]
    assert "margin" not in source.task(0).facts
    assert source.task(1).facts["margin"] == 0.5
    assert source.task(2).prompt == (Message("user", "Hello"),)
    assert env.source("eval").task(0).prompt == "held out"
    env.validate(source.task(0))


def test_parquet_and_a_file_of_its_own_for_evaluation(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in ROWS[:2]])
    for name in ("train", "eval"):
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    env = Preferences(str(tmp_path / "train.parquet"), str(tmp_path / "eval.parquet"))
    assert len(env.source("train")) == len(env.source("eval")) == 2
    assert env.source("train").task(0).id == "preferences/train/0"
    assert env.source("eval").task(0).id == "preferences/eval/0"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "has no field 'prompt'"),
        ({"prompt": "p", "chosen": "a"}, "has no field 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": " ", "rejected": "a"}, "the chosen answer is empty"),
        ({"prompt": "p", "chosen": 3, "rejected": "a"}, "neither a text nor one message"),
        (
            {"prompt": "p", "chosen": [{"role": "user", "content": "x"}], "rejected": "a"},
            "neither a text nor one message of the assistant",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "much"},
            "field 'margin' is 'much', not a finite number",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")},
            "field 'margin' is nan, not a finite number",
        ),
    ],
)
def test_odd_rows_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        env_of(tmp_path, [row, *ROWS]).source("train").task(0)
    assert "row 0 of" in str(error.value)


def test_sizes_that_leave_a_split_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"preferences: eval_size is 1: it must lie in 1\.\.0"):
        env_of(tmp_path, ROWS[:1]).source("train")


async def group_of(env: Preferences, index: int, context: int = 64) -> ScoredGroup:
    async def score(task: Task, trajectories: Sequence[Trajectory]) -> tuple[Score, ...]:
        raise AssertionError("the environment's rewards hold, nobody else is asked")

    async def reference(trajectories: Sequence[Trajectory]) -> ReferenceStatistics:
        logprobs = tuple(np.full(len(t.token_ids), -1.0, np.float32) for t in trajectories)
        return ReferenceStatistics("r", logprobs)

    renderer, task = Renderer(ByteTokenizer()), env.source("train").task(index)
    scoring = Scoring(score, reference=reference)
    limits = Limits(max_new_tokens=1, context=context)
    return await compared_group(env, task, renderer, GroupId(0, index, 0), limits, scoring)


async def test_a_group_is_both_answers_the_chosen_one_first(tmp_path: Path) -> None:
    group = await group_of(env_of(tmp_path), 1)
    assert [t.artifact for t in group.trajectories] == ["2", "3"]
    assert [(t.sample, t.model) for t in group.trajectories] == [(0, GIVEN), (1, GIVEN)]
    assert [score.value for score in group.scores] == [1.0, 0.0]
    for trajectory in group.trajectories:
        assert trajectory.token_ids[trajectory.loss_mask][-1] == ByteTokenizer.eos_id
        assert trajectory.loss_mask.sum() == 2
    assert group.reference is not None and len(group.reference.logprobs) == 2


async def test_the_margin_is_of_given_answers_alone(tmp_path: Path) -> None:
    env = env_of(tmp_path)
    group = await group_of(env, 1)
    assert summarise(group).margin == 0.5
    assert summarise(await group_of(env, 0)).margin == 0.0
    sampled = tuple(replace(t, model="policy") for t in group.trajectories)
    assert summarise(replace(group, trajectories=sampled)).margin == 0.0


async def test_an_answer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt and answer 1 have 4 \+ 5 tokens, more than the"):
        await group_of(env_of(tmp_path), 0, context=8)


def test_real_solutions_with_verdicts(tmp_path: Path) -> None:
    """Solutions of four models, right ones preferred to wrong ones."""
    lines = shared_data("gsm8k-solutions.jsonl").read_text().splitlines()
    rows = [pair for line in lines for pair in pairs_of(json.loads(line))]
    assert len(rows) > 300
    env = env_of(tmp_path, rows)
    source = env.source("train")
    assert len(source) == len(rows) - 1
    for index in range(len(source)):
        env.validate(source.task(index))


def pairs_of(row: dict[str, object]) -> list[dict[str, object]]:
    """A right and a wrong solution of the question, if there are any."""
    solutions = [value for value in row.values() if isinstance(value, dict)]
    by_verdict = [[s["solution"] for s in solutions if s["is_correct"] is v] for v in (True, False)]
    pairs = zip(*by_verdict, strict=False)
    return [{"prompt": row["question"], "chosen": c, "rejected": r} for c, r in pairs if c.strip()]
