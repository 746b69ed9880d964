"""What every reward in the registry must hold to. A new one adds a line to CASES."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest

from manta.envs.protocols import (
    BatchReward,
    GroupReward,
    Reward,
    Scope,
    Services,
    TrajectoryReward,
)
from manta.envs.records import Detail, Json, Score, Shown, Task
from manta.envs.registry import REWARDS, build
from manta.envs.rewards.scope import rewards_within, scope_of
from manta.envs.rewards.token_log_ratio import LOGPROB
from tests.unit.envs.scripted import said

TEXTS = ["12", "", " ", ":", "12 12", "x" * 10_000, "9" * 10_000, "(" * 5000, "\x00", "1/0", "7+5"]


class Letters:
    """A scorer by the number of different characters."""

    version = "letters"

    async def __call__(self, shown: Sequence[Shown]) -> list[Score]:
        texts = [each.trajectories[0].artifact for each in shown]
        return [Score(1 / (1 + len(set(text))), {}) for text in texts]


class Tokens:
    """A scorer that finds every token as likely as every other."""

    version = "tokens"

    def __init__(self, logprob: float) -> None:
        self._logprob = logprob

    async def __call__(self, shown: Sequence[Shown]) -> list[Score]:
        masks = [each.trajectories[0].loss_mask for each in shown]
        columns = [(mask * self._logprob).astype(np.float32) for mask in masks]
        return [Score(0.0, {}, columns={LOGPROB: column}) for column in columns]


SERVICES = Services(
    scorers={"letters": Letters(), "likely": Tokens(-1.0), "unlikely": Tokens(-2.0)}
)


@dataclass(frozen=True)
class Case:
    scope: Scope
    options: dict[str, Json] = field(default_factory=dict)
    other: dict[str, Json] = field(default_factory=dict)
    reference: Json = 12


RATIO: dict[str, Json] = {"scorer": "likely", "against": "unlikely"}
CASES = {
    "by_turn": Case("trajectory", {"rule": "exact"}, {"rule": "exact", "after": "="}),
    "distinct": Case("group", {}, {"extract": "last_number"}),
    "exact": Case("trajectory", {}, {"after": "####"}),
    "expression": Case("trajectory", {}, {"after": "="}, {"numbers": [7, 5], "target": 12}),
    "format": Case("trajectory", {"pattern": "[0-9]+"}, {"pattern": "[0-9]*"}),
    "length": Case("trajectory", {"target": 1, "limit": 9}, {"target": 2, "limit": 9}),
    "reward_model": Case("group", {"scorer": "letters"}, {"scorer": "others"}),
    "token_log_ratio": Case("group", {**RATIO, "scale": 1e-5}, {**RATIO, "scale": 1e-6}),
    "rarity": Case("batch", {}, {"extract": "last_number"}),
}


async def values(reward: Reward, case: Case) -> list[float | None]:
    """One value per text of TEXTS, whatever the scope."""
    given = await all_given(reward, case)
    assert rewards_within(reward) == any(isinstance(each, Detail) for each in given)
    return [each.value if isinstance(each, Detail) else each for each in given]


async def all_given(reward: Reward, case: Case) -> Sequence[float | Detail | None]:
    task = Task("t", "p", case.reference, "test")
    # With an end token, as an engine says it
    group = [said(text, len(text) + 1) for text in TEXTS]
    if case.scope == "trajectory":
        each = cast(TrajectoryReward, reward)
        return [await each.score(task, trajectory, SERVICES) for trajectory in group]
    if case.scope == "group":
        return await cast(GroupReward, reward).score_group(task, group, SERVICES)
    batch = cast(BatchReward, reward)
    first, second = await batch.score_batch([(task, group[:4]), (task, group[4:])], SERVICES)
    return first + second


def test_every_reward_has_a_case() -> None:
    assert set(CASES) == set(REWARDS)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_scope_and_version(name: str) -> None:
    case = CASES[name]
    reward = build("reward", name, case.options)
    assert scope_of(name, reward) == case.scope
    assert reward.version.startswith(f"{name}(")
    assert reward.version == build("reward", name, case.options).version
    assert reward.version != build("reward", name, case.other).version


@pytest.mark.parametrize("name", sorted(REWARDS))
async def test_any_text_gets_the_same_value_between_0_and_1_twice(name: str) -> None:
    case = CASES[name]
    reward = build("reward", name, case.options)
    first = await values(reward, case)
    assert len(first) == len(TEXTS)
    assert all(value is not None and 0.0 <= value <= 1.0 for value in first)
    assert len(set(first)) > 1
    assert await values(reward, case) == first


@pytest.mark.parametrize("name", ["exact", "expression"])
async def test_verifiers_pay_nothing_for_empty_looking_answers(name: str) -> None:
    case = CASES[name]
    found = await values(build("reward", name, case.options), case)
    by_text = dict(zip(TEXTS, found, strict=True))
    assert [by_text[text] for text in ("", " ", ":")] == [0.0, 0.0, 0.0]
