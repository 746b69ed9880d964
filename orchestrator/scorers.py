"""The scorers of a run: which rewards call them, and where their models are.

Owns those two answers. Whether they make sense is `manta.orchestrator.scorer_check`'s, the workers
are `manta.orchestrator.scorer_pool`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from manta.actors.scorers.settings import ScorerConfig
from manta.envs.registry import build
from manta.envs.rewards.scope import scorers_of
from manta.orchestrator.config import RewardConfig, RunFile
from manta.orchestrator.products import Products


def called_by(reward: RewardConfig) -> Mapping[str, tuple[str, ...]]:
    """By component, the scorers that it calls; components that cannot be built call none."""
    found = {}
    for name, component in reward.components.items():
        try:
            found[name] = scorers_of(name, build("reward", component.reward, component.options))
        except ValueError:
            found[name] = ()
    return found


def called_in(run_file: RunFile) -> tuple[str, ...]:
    """The scorers that any stage calls, each once, in the order of the run file."""
    rewards = [stage.reward for stage in run_file.stages if stage.reward is not None]
    called = {name for reward in rewards for names in called_by(reward).values() for name in names}
    return tuple(name for name in run_file.scorers if name in called)


def role(scorer: str) -> str:
    """What the plan calls the workers of `scorer`."""
    return f"scorer {scorer}"


def model_folder(config: ScorerConfig, products: Products) -> str:
    """Where the scorer's model is, now that the stage that makes it, if one does, has ended.

    Raises ValueError where it is not there, or damaged.
    """
    if config.is_product:
        return str(products.folder(config.model, config.product_kind))
    if Path(config.model).is_dir():
        return str(Path(config.model).absolute())
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(config.model))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"scorer model '{config.model}': there is no such folder, and the hub gave no model of "
            f"that name: {error}"
        ) from error
