"""Named algorithms whose baseline is not the prompt's group, with their published settings.

Part of `manta.algorithms.presets`: none at all, the greedy answer's reward, the step's mean (and
its form over groups), or a critic's values.
"""

from __future__ import annotations

from collections.abc import Mapping

from manta.algorithms.part_settings import CriticSettings, KlSettings
from manta.algorithms.settings import AlgorithmSettings

BASELINE_PRESETS: Mapping[str, AlgorithmSettings] = {
    # Williams, "Simple statistical gradient-following algorithms", 1992: the mean over rows of
    # reward times the row's summed log-prob gradient, no baseline. With one on-policy update a
    # step the ratio is 1 and the clip never acts.
    "reinforce": AlgorithmSettings(
        name="reinforce",
        samples_per_prompt=1,
        advantage="reward",
        divide_by_std=False,
        loss="clipped_surrogate",
        aggregation="sequence_sum_constant",
        constant_length=1,
    ),
    # ReMax, Li et al., arXiv 2310.10505, as in the authors' code: one sample, the reward of the
    # greedy answer as the baseline, `-A * logprob`, mean over tokens, each of which is charged
    # its own KL (k1) to the reference; coefficient 0.05 of their Llama-2-7B script. Theirs also
    # discounts the reward by 0.99 a token from the row's end, bounds it by 5, and samples with
    # top_p 0.9: none of it here.
    "remax": AlgorithmSettings(
        name="remax",
        samples_per_prompt=1,
        companion="greedy",
        advantage="greedy_baseline",
        divide_by_std=False,
        loss="policy_gradient",
        aggregation="token_mean",
        kl=KlSettings(coef=0.05, estimator="k1", placement="reward", discount=0.0),
        proximal="learner",
    ),
    # REINFORCE++, arXiv 2501.03262, eq. 8 to 10: one sample, k1 in each token's reward, its
    # return-to-go, normalised over the step's tokens, PPO's clip. KL coefficient 0.01, the
    # default of the authors' code, which averages over tokens.
    "reinforce_plus_plus": AlgorithmSettings(
        name="reinforce_plus_plus",
        samples_per_prompt=1,
        advantage="reward",
        aggregation="token_mean",
        kl=KlSettings(coef=0.01, estimator="k1", placement="reward"),
        proximal="learner",
        whiten_advantages=True,
    ),
    # Its form with a baseline, same paper: the group's mean is subtracted, the rest as above,
    # k2 in the loss. 8 samples and coefficient 0.001 of the authors' example script.
    "reinforce_plus_plus_baseline": AlgorithmSettings(
        name="reinforce_plus_plus_baseline",
        samples_per_prompt=8,
        advantage="group_relative",
        divide_by_std=False,
        aggregation="token_mean",
        kl=KlSettings(coef=0.001, estimator="k2", placement="loss"),
        whiten_advantages=True,
    ),
    # PPO, arXiv 1707.06347, with GAE, arXiv 1506.02438, as used on language models: Ziegler et
    # al., arXiv 1909.08593, and their code: clip 0.2, value clip 0.2 and coefficient 0.1, no
    # discount, lambda 0.95, whitened advantages, k1 to the reference in each token's reward
    # (and four epochs: set `epochs_per_step`). A model of its own for the values as in Stiennon
    # et al., arXiv 2009.01325; KL coefficient 0.02 of InstructGPT, arXiv 2203.02155.
    "ppo": AlgorithmSettings(
        name="ppo",
        samples_per_prompt=1,
        advantage="gae",
        divide_by_std=False,
        gamma=1.0,
        gae_lambda=0.95,
        critic=CriticSettings(model="own", clip=0.2, loss_coef=0.1),
        loss="clipped_surrogate",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="token_mean",
        kl=KlSettings(coef=0.02, estimator="k1", placement="reward"),
        proximal="learner",
        whiten_advantages=True,
    ),
}
