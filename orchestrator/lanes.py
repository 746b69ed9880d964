"""From a stage of the run file to the lanes its groups are made in."""

from __future__ import annotations

from manta.actors.lanes import Lane, RewardSpec
from manta.orchestrator.config import EvaluateConfig, RewardConfig, RunFile, StageConfig
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.scorers import called_by


def train_lane(run_file: RunFile, stage: StageConfig, directory: RunDirectory) -> Lane:
    """Where the groups that `stage` trains on, or writes down, come from."""
    written = stage.trajectories
    if stage.written_by is not None:
        written = str(directory.product(stage.written_by))
    assert stage.env is not None and stage.algorithm is not None
    algorithm = stage.algorithm
    return Lane(
        name=stage.name,
        env=stage.env.name,
        env_options=stage.env.options,
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
        uses_reference=stage.kind == "train" and algorithm.needs_reference,
        trajectories=written,
        redundant_samples=run_file.rollout.redundant_samples if stage.samples_to_train else 0,
        compares=algorithm.compares_given,
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
    )


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
    )
