"""The residents of a stage: which modules stand beside the policy, and how each is optimised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from manta.actors.backends.settings import CRITIC, LearnerSettings
from manta.actors.models.critic import build_critic
from manta.actors.models.resident import ResidentModule
from manta.actors.models.spec import ModelSpec
from manta.algorithms.settings import AlgorithmSettings, CriticSettings


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
    critic = algorithm.critic
    if critic is None:
        return {}
    module = build_critic(critic, spec, vocab_size, policy)
    return {CRITIC: Resident(module, critic_optimizer(critic, learner))}


def critic_optimizer(critic: CriticSettings, learner: LearnerSettings) -> LearnerSettings:
    """The learner's settings with the critic's own laid over them."""
    own = {
        "learning_rate": critic.learning_rate,
        "weight_decay": critic.weight_decay,
        "betas": critic.betas,
        "clip_norm": critic.clip_norm,
    }
    return replace(learner, **{name: value for name, value in own.items() if value is not None})  # type: ignore[arg-type]
