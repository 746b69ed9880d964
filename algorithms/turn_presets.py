"""Named algorithms that learn from rewards within a trajectory, with their published settings.

Part of `manta.algorithms.presets`. Which rewards are paid within is the run file's to say
(`reward.within`). The numbers that a paper leaves open are named beside the preset.
"""

from __future__ import annotations

from collections.abc import Mapping

from manta.algorithms.part_settings import CriticSettings, KlSettings
from manta.algorithms.settings import AlgorithmSettings

TURN_PRESETS: Mapping[str, AlgorithmSettings] = {
    # Policy gradient by what is paid from a token on (Sutton et al. 2000, "Policy gradient methods
    # for reinforcement learning with function approximation"), with the mean over the step's tokens
    # as baseline, whitened as in REINFORCE++, arXiv 2501.03262. For rewards by turn set `credit` to
    # turn. PPO's clip, which never acts with one on-policy update a step.
    "reinforce_to_go": AlgorithmSettings(
        name="reinforce_to_go",
        samples_per_prompt=1,
        advantage="return_to_go",
        aggregation="token_mean",
        whiten_advantages=True,
    ),
    # MAPO, arXiv 2603.06194: a reward for every turn, turns' returns and their own rewards weighed
    # alike. What stayed open stands at `manta.algorithms.turns.turn_mixed`; 8 samples, no KL and
    # PPO's clip are ours.
    "mapo": AlgorithmSettings(
        name="mapo",
        samples_per_prompt=8,
        advantage="turn_mixed",
        turn_weight=0.5,
        mixed_over="group",
        gamma=1.0,
        aggregation="token_mean",
    ),
    # RTO, arXiv 2404.18922: PPO with a reward at every token, the log-ratio of a model trained by
    # DPO to the reference (the reward `token_log_ratio`; scale and clip 0.05 in the authors'
    # script), beside the sentence's at its end. KL coefficient 0.01 of that script; gamma, lambda
    # and both clips are its defaults. It gives the critic 18 times the policy's learning rate: set
    # `critic.learning_rate`. The rest is our `ppo`, but for the value loss, which counts fully.
    "rto": AlgorithmSettings(
        name="rto",
        samples_per_prompt=1,
        advantage="gae",
        divide_by_std=False,
        gamma=1.0,
        gae_lambda=0.95,
        critic=CriticSettings(model="own", clip=0.2),
        aggregation="token_mean",
        kl=KlSettings(coef=0.01, estimator="k1", placement="reward"),
        proximal="learner",
        whiten_advantages=True,
    ),
}
