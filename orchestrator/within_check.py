"""What `reward.within` and the algorithm that reads it must agree on."""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.catalogue import ADVANTAGE_KINDS, LOSS_KINDS
from manta.envs.protocols import Reward
from manta.envs.registry import build
from manta.envs.rewards.compose import check_within
from manta.orchestrator.config import RewardConfig, StageConfig
from manta.orchestrator.strict import nearest


def within_problems(stage: StageConfig, reward: RewardConfig) -> Iterator[str]:
    """Problems of one stage, as the rest of the key and what is wrong."""
    for name in reward.within:
        key = f".reward.within.{name}"
        if name not in reward.components:
            yield f"{key}: there is no component '{name}'{nearest(name, reward.components)}"
            continue
        component = reward.components[name]
        try:
            made = build("reward", component.reward, component.options)
        except ValueError:
            continue
        yield from _says_nothing(key, name, made)
    yield from _unread(stage, reward)


def _says_nothing(key: str, name: str, component: Reward) -> Iterator[str]:
    try:
        check_within(name, {name: component})
    except ValueError as error:
        yield f"{key}: {str(error).removeprefix('within: ')}"


def _unread(stage: StageConfig, reward: RewardConfig) -> Iterator[str]:
    """Rewards that nothing learns from, and an algorithm that lives of them and has none."""
    algorithm = stage.algorithm
    if algorithm is None or not stage.samples_to_train or LOSS_KINDS[algorithm.loss].ratio is None:
        return
    readers = [name for name, kind in ADVANTAGE_KINDS.items() if kind.reads_within]
    if reward.within and algorithm.advantage not in readers:
        yield (
            f".reward.within: pays rewards within a sample, and the advantage "
            f"{algorithm.advantage} is of whole samples: remove it (components are measured all "
            f"the same), or set algorithm.advantage to {' or '.join(readers)}"
        )
    if algorithm.advantage == "turn_mixed" and not reward.within:
        yield (
            ".reward.within: the advantage turn_mixed compares turns by rewards of their own: "
            "weigh a component that gives them, such as by_turn"
        )
