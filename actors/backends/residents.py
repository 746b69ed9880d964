"""The residents of a stage: which modules stand beside the policy, and how each is optimised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from manta.actors.backends.settings import CRITIC, PROCESS, REWARD, LearnerSettings
from manta.actors.models.critic import build_critic
from manta.actors.models.implicit_reward import build_implicit_reward
from manta.actors.models.resident import ResidentModule
from manta.actors.models.reward_model import build_reward_model
from manta.actors.models.spec import ModelSpec
from manta.algorithms.part_settings import (
    CriticSettings,
    ImplicitRewardSettings,
    RewardModelSettings,
)
from manta.algorithms.settings import AlgorithmSettings


@dataclass(frozen=True, slots=True)
class Resident:
    """Of `settings` only what concerns an optimizer counts; it is given a learning rate."""

    module: ResidentModule
    settings: LearnerSettings


def build_residents(
    algorithm: AlgorithmSettings,
    learner: LearnerSettings,
    spec: ModelSpec,
    vocab_size: int,
    policy: nn.Module,
) -> Mapping[str, Resident]:
    """By name, what `algorithm` wants beside `policy`, made from its weights as they are now."""
    residents: dict[str, Resident] = {}
    if algorithm.critic is not None:
        critic = build_critic(algorithm.critic, spec, vocab_size, policy)
        residents[CRITIC] = Resident(critic, own_optimizer(algorithm.critic, learner))
    if algorithm.reward_model is not None:
        reward = build_reward_model(algorithm.reward_model, spec, vocab_size, policy)
        residents[REWARD] = Resident(reward, own_optimizer(algorithm.reward_model, learner))
    if algorithm.implicit_reward is not None:
        process = build_implicit_reward(algorithm.implicit_reward, spec, vocab_size, policy)
        residents[PROCESS] = Resident(process, own_optimizer(algorithm.implicit_reward, learner))
    return residents


def own_optimizer(
    told: CriticSettings | RewardModelSettings | ImplicitRewardSettings, learner: LearnerSettings
) -> LearnerSettings:
    """The learner's settings with a resident's own laid over them."""
    own = {
        "learning_rate": told.learning_rate,
        "weight_decay": told.weight_decay,
        "betas": told.betas,
        "clip_norm": told.clip_norm,
    }
    return replace(learner, **{name: value for name, value in own.items() if value is not None})  # type: ignore[arg-type]
