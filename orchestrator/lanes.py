"""From a stage of the run file to the lanes its groups are made in."""

from __future__ import annotations

from manta.actors.lanes import Lane, RewardSpec
from manta.algorithms.catalogue import reference_top_k
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.hindsight import Hindsight
from manta.orchestrator.config import EnvConfig, EvaluateConfig, RewardConfig, RunFile, StageConfig
from manta.orchestrator.model_names import named_stage, parse_stage
from manta.orchestrator.products import Products
from manta.orchestrator.reference_use import needs_reference
from manta.orchestrator.scorers import called_by

_NO_ENV = EnvConfig("")
"""Of lanes that read what was written."""


def train_lane(run_file: RunFile, stage: StageConfig, products: Products) -> Lane:
    """Where the groups that `stage` trains on, or writes down, come from."""
    assert stage.algorithm is not None
    algorithm, env = stage.algorithm, stage.env or _NO_ENV
    return Lane(
        name=stage.name,
        env=env.name,
        env_options=env.options,
        split="train",
        samples_from=algorithm.samples_from,
        samples_per_prompt=algorithm.samples_per_prompt,
        seed=run_file.run.seed,
        context=run_file.model.context,
        max_new_tokens=run_file.rollout.max_new_tokens,
        temperature=run_file.rollout.temperature,
        top_p=run_file.rollout.top_p,
        top_k=run_file.rollout.top_k,
        ignore_eos=run_file.rollout.ignore_eos,
        reward=_reward(run_file, stage.reward) if algorithm.samples_from == "policy" else None,
        uses_reference=needs_reference(run_file, stage),
        reference_top_k=reference_top_k(algorithm) if stage.kind == "train" else 0,
        trajectories=_written(run_file, stage, products),
        companions_from=_companions(run_file, stage, products),
        redundant_samples=run_file.rollout.redundant_samples if stage.samples_to_train else 0,
        compares=algorithm.compares_given,
        companion=algorithm.companion,
        tag=stage.prompt_tag,
        hindsight=_hindsight(algorithm) if stage.kind == "train" else None,
    )


def annotate_lane(run_file: RunFile, stage: StageConfig, products: Products) -> Lane:
    """Written groups, scored again."""
    env = stage.env or _NO_ENV
    return Lane(
        name=stage.name,
        env=env.name,
        env_options=env.options,
        split="train",
        samples_from="written",
        samples_per_prompt=1,
        seed=run_file.run.seed,
        context=run_file.model.context,
        reward=_reward(run_file, stage.reward),
        uses_reference=needs_reference(run_file, stage),
        trajectories=_written(run_file, stage, products),
        is_annotated=True,
    )


def eval_lane(run_file: RunFile, stage: StageConfig, settings: EvaluateConfig) -> Lane:
    """Held-out tasks of the stage's environment, under the same rewards."""
    assert stage.env is not None
    return Lane(
        name=f"{stage.name}/eval",
        env=stage.env.name,
        env_options=stage.env.options,
        split="eval",
        samples_from="policy",
        samples_per_prompt=settings.samples_per_prompt,
        seed=run_file.run.seed,
        context=run_file.model.context,
        max_new_tokens=run_file.rollout.max_new_tokens,
        temperature=settings.temperature,
        reward=_reward(run_file, stage.reward),
        tag=stage.prompt_tag,
    )


def _hindsight(algorithm: AlgorithmSettings) -> Hindsight | None:
    """How rows train otherwise than they were made; None where they do not."""
    condition = algorithm.condition
    if condition is not None:
        return Hindsight(condition.tags, condition.bounds, algorithm.train_feedback)
    return Hindsight(trains_feedback=True) if algorithm.train_feedback else None


def _reward(run_file: RunFile, reward: RewardConfig | None) -> RewardSpec | None:
    if reward is None:
        return None
    components = {name: (c.reward, c.options) for name, c in reward.components.items()}
    called = {name for names in called_by(reward).values() for name in names}
    return RewardSpec(
        reward.formula,
        components,
        run_file.reward_workers.deadline_seconds,
        tuple(sorted(called)),
        reward.gold,
        reward.within,
    )


def _written(run_file: RunFile, stage: StageConfig, products: Products) -> str | None:
    """The folder of the trajectories that `stage` reads, verified where it is a product.

    Raises ValueError where that is missing or damaged.
    """
    if stage.written_by is None:
        return stage.trajectories
    return _data(run_file, stage, f"stage:{stage.written_by}", products)


def _companions(run_file: RunFile, stage: StageConfig, products: Products) -> str | None:
    """The folder that rows beside the samples are taken from. Raises ValueError as `_written`."""
    if stage.companions_from is None:
        return None
    return _data(run_file, stage, stage.companions_from, products)


def _data(run_file: RunFile, stage: StageConfig, name: str, products: Products) -> str:
    writer = named_stage(run_file, parse_stage(name), stage)
    return str(products.folder(f"stage:{writer.name}", "data"))
