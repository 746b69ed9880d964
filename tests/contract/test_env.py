"""What every environment in the registry must hold to. A new one adds a line to CASES."""

import inspect
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from manta.envs.episode import Limits
from manta.envs.group import Scoring, given_group
from manta.envs.protocols import Compares, Env, Services, Split
from manta.envs.records import GroupId, Json
from manta.envs.registry import ENVS, build
from manta.envs.render import Renderer
from manta.envs.rewards.artifact import ArtifactReward
from manta.envs.rewards.compose import Composition
from manta.envs.rewards.formula import Formula
from manta.envs.tokenizer import ByteTokenizer

SPLITS: tuple[Split, ...] = ("train", "eval")
SOME = 200


@dataclass(frozen=True)
class Case:
    """How to make an environment, which reward goes with it, and an answer that is always wrong."""

    reward: str
    options: dict[str, Json] = field(default_factory=dict)
    reward_options: dict[str, Json] = field(default_factory=dict)
    wrong: str = "no answer"


CASES = {
    "arithmetic": Case("exact", {"operations": ["+", "-", "*"], "eval_size": 100}),
    "countdown": Case("expression", {"train_size": 500, "eval_size": 100}),
    "gsm8k": Case("exact", {"train": "rows.jsonl", "eval_size": 5}, {"after": "####"}),
    "preferences": Case("exact", {"train": "pairs.jsonl", "eval_size": 5}),
    "sorting": Case("exact", {"length": 4, "eval_size": 100}),
}


@pytest.fixture(params=sorted(ENVS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def env(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Env:
    rows = [
        {
            "question": f"What is {i} and {i}?",
            "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>\n#### {2 * i}",
        }
        for i in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pairs = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs))
    monkeypatch.chdir(tmp_path)
    return build("env", name, CASES[name].options)


def test_every_environment_has_a_case() -> None:
    assert set(CASES) == set(ENVS)


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_stable_and_travel(env: Env, name: str, split: Split) -> None:
    source, again = env.source(split), env.source(split)
    assert len(source) == len(again) > 0
    for index in range(min(SOME, len(source))):
        task = source.task(index)
        assert task == source.task(index) == again.task(index)
        assert pickle.loads(pickle.dumps(task)) == task
        assert task.env == name
        json.dumps(task.reference)
    with pytest.raises(IndexError):
        source.task(len(source))


def test_splits_share_neither_ids_nor_prompts(env: Env) -> None:
    sources = [env.source(split) for split in SPLITS]
    tasks = [[source.task(index) for index in range(len(source))] for source in sources]
    train, held_out = ({task.id for task in part} for part in tasks)
    assert train.isdisjoint(held_out)
    assert len(train) == len(tasks[0])
    train, held_out = ({str(task.prompt) for task in part} for part in tasks)
    assert train.isdisjoint(held_out)


@pytest.mark.parametrize("split", SPLITS)
def test_gold_answers_are_right(env: Env, split: Split) -> None:
    source = env.source(split)
    for index in range(min(SOME, len(source))):
        task = source.task(index)
        assert env.gold(task)
        env.validate(task)


@pytest.mark.parametrize("split", SPLITS)
async def test_gold_scores_one_by_its_reward_and_nonsense_zero(
    env: Env, name: str, split: Split
) -> None:
    case = CASES[name]
    reward = build("reward", case.reward, case.reward_options)
    composition = Composition(Formula("correct"), {"correct": reward})
    services = Services()
    scoring = Scoring(lambda task, group: composition.score_group(task, group, services))
    renderer = Renderer(ByteTokenizer())
    source = env.source(split)
    for index in range(min(20, len(source))):
        task = source.task(index)
        group = await given_group(
            env, task, renderer, GroupId(0, index, 0), Limits(64, 1024), scoring
        )
        assert group.scores[0].value == 1.0
        assert group.trajectories[0].artifact == env.gold(task)
    verifier = cast(ArtifactReward, reward)
    assert verifier.judge(source.task(0), case.wrong) == 0.0


async def test_written_answers_begin_with_the_gold_one(env: Env) -> None:
    task = env.source("train").task(0)
    if not isinstance(env, Compares):
        assert not hasattr(env, "answers")
        return
    answers = env.answers(task)
    assert len(answers) == env.num_answers > 1
    assert answers[0].text == env.gold(task)
    assert all(answer.reward < answers[0].reward for answer in answers[1:])


async def test_turns_and_budgets(env: Env) -> None:
    task = env.source("train").task(0)
    budgets = env.budgets(task, 4, 32)
    assert len(budgets) == 4
    assert all(1 <= budget <= 32 for budget in budgets)
    assert inspect.iscoroutinefunction(env.reply)
    if env.single_turn:
        assert await env.reply(task, []) is None
