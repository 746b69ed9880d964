"""Named algorithms that compare the samples of a prompt, with their published settings.

Part of `manta.algorithms.presets`. They differ in how a group's rewards become advantages, and in
which of its samples count. Where none is named, groups are of 8, the clip is PPO's 0.2, and there
is no KL.
"""

from __future__ import annotations

from collections.abc import Mapping

from manta.algorithms.part_settings import (
    DifficultySettings,
    FilterSettings,
    ImplicitRewardSettings,
    KlSettings,
)
from manta.algorithms.settings import AlgorithmSettings

GROUP_PRESETS: Mapping[str, AlgorithmSettings] = {
    # DeepSeekMath, arXiv 2402.03300, section 4.2: 64 samples, KL coefficient 0.04, one update a
    # step. The paper does not give the clip (0.2 is PPO's) nor an epsilon.
    "grpo": AlgorithmSettings(
        name="grpo",
        samples_per_prompt=64,
        advantage="group_relative",
        divide_by_std=True,
        loss="clipped_surrogate",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="sequence_mean",
        kl=KlSettings(coef=0.04, estimator="k3", placement="loss"),
    ),
    # Understanding R1-Zero-Like Training, arXiv 2503.20783: 8 samples, no KL, the constant is
    # the generation budget, 3000 new tokens in the paper: set it to yours.
    "dr_grpo": AlgorithmSettings(
        name="dr_grpo",
        samples_per_prompt=8,
        advantage="group_relative",
        divide_by_std=False,
        loss="clipped_surrogate",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="sequence_sum_constant",
        constant_length=3000,
    ),
    # DAPO, arXiv 2503.14476, section 4.1: 16 samples, clip 0.2 / 0.28, no KL. Its soft overlong
    # punishment is the reward component `length` less 1 (target 16384, limit 20480).
    "dapo": AlgorithmSettings(
        name="dapo",
        samples_per_prompt=16,
        advantage="group_relative",
        divide_by_std=True,
        loss="clipped_surrogate",
        clip_low=0.2,
        clip_high=0.28,
        aggregation="token_mean",
        filters=(FilterSettings("zero_variance"),),
    ),
    # RLOO, Ahmadian et al., arXiv 2402.14740: leave-one-out baseline, 4 samples, the row as one
    # action (its summed log-prob), no clip: make one update a step, and it never acts. KL in
    # the reward; the coefficient depends on the data there, 0.05 is TRL's. Ours charges each
    # token the KL from there on, after the baseline; the paper the whole row's, before it.
    "rloo": AlgorithmSettings(
        name="rloo",
        samples_per_prompt=4,
        advantage="leave_one_out",
        aggregation="sequence_sum_constant",
        constant_length=1,
        kl=KlSettings(coef=0.05, estimator="k1", placement="reward"),
        proximal="learner",
    ),
    # OPO, arXiv 2505.23585: 8 samples, exactly on-policy (one update a step, staleness 0), no
    # KL, no entropy term; its baseline is derived for the sum over a row's tokens.
    "opo": AlgorithmSettings(
        name="opo",
        samples_per_prompt=8,
        advantage="length_weighted",
        aggregation="sequence_sum_constant",
        constant_length=1,
    ),
    # GDPO, arXiv 2601.05242: every reward normalised by itself. Name them and their weights in
    # `component_weights`.
    "gdpo": AlgorithmSettings(
        name="gdpo",
        samples_per_prompt=8,
        advantage="decoupled",
        aggregation="sequence_mean",
    ),
    # Pass@k training, arXiv 2508.10751, analytical derivation; rewards are 0 or 1. The paper
    # tries several k: 4 of 8 samples is ours.
    "pass_at_k": AlgorithmSettings(
        name="pass_at_k",
        samples_per_prompt=8,
        advantage="pass_at_k",
        pass_k=4,
        aggregation="token_mean",
    ),
    # MaxRL, arXiv 2602.02710: on-policy, rewards are 0 or 1.
    "max_rl": AlgorithmSettings(
        name="max_rl",
        samples_per_prompt=8,
        advantage="max_likelihood",
        aggregation="token_mean",
    ),
    # SPO, arXiv 2401.04056: a sample's reward is the share of the group's others that it beats.
    # The paper gives that reward to any learner, and no settings for language models.
    "spo": AlgorithmSettings(
        name="spo",
        samples_per_prompt=8,
        advantage="win_rate",
        divide_by_std=False,
        aggregation="token_mean",
    ),
    # GRPO-lambda, Dai et al., arXiv 2505.18086: the fifth of the step's prompts that is right
    # most often pays for length; rewards are 0 or 1 there. The penalty's coefficient, the
    # clip and a KL could not be checked: 0.2, PPO's clip and no KL are ours.
    "grpo_lambda": AlgorithmSettings(
        name="grpo_lambda",
        samples_per_prompt=8,
        advantage="length_penalized",
        penalized_share=0.2,
        length_penalty=0.2,
        aggregation="sequence_mean",
    ),
    # GRPO-LEAD's weights by difficulty, Zhang and Zuo, arXiv 2504.09696: 0.4 to 1.5, half-way
    # where 75% are right, steepness 10, 8 samples, mean over tokens, no KL, the settings of the
    # authors' code. Its rewards (-1 for a wrong sample, less than 1 for a long right one) are
    # the run file's.
    "grpo_lead": AlgorithmSettings(
        name="grpo_lead",
        samples_per_prompt=8,
        advantage="difficulty_weighted",
        difficulty=DifficultySettings(low=0.4, high=1.5, midpoint=0.75, steepness=10.0),
        aggregation="token_mean",
    ),
    # PROF, Ye et al., arXiv 2509.03403: of 8 samples the 4 whose way fits their answer, laid
    # over GRPO with the settings of the authors' runs, mean over tokens, KL and entropy
    # coefficients 0.001. The reward needs a component `process`, such as the mean of a process
    # reward model's scores.
    "prof": AlgorithmSettings(
        name="prof",
        samples_per_prompt=8,
        aggregation="token_mean",
        kl=KlSettings(coef=0.001, estimator="k3", placement="loss"),
        entropy_coef=0.001,
        filters=(FilterSettings("process_consistency", keep=4),),
    ),
    # PRIME, arXiv 2502.01456, sections 3 to 5.3: 4 samples, groups of which 0.2 to 0.8 are
    # right, beta 0.05, learning rate 1e-6 of the reward model (5e-7 of the policy: set
    # `learning_rate`), which scores a step before it learns from it; no KL. The paper gives
    # neither clip (0.2 is PPO's), nor aggregation and discount (mean over tokens and 1 are
    # those of the authors' code, which normalises rewards and whitens advantages as well).
    "prime": AlgorithmSettings(
        name="prime",
        samples_per_prompt=4,
        advantage="leave_one_out",
        aggregation="token_mean",
        implicit_reward=ImplicitRewardSettings(beta=0.05, learning_rate=1e-6),
        filters=(FilterSettings("accuracy_band", low=0.2, high=0.8),),
    ),
    # GRAO, arXiv 2508.07750: 8 samples and the given answer, normalised together, imitation
    # 0.5, alignment 0.6, means over each row's tokens, no ratio, no KL (sampled at temperature
    # 0.7: set `rollout.temperature`). Its text normalises the answer in one group with the
    # samples, as here, its formulas for mean and deviation sum over G; their deviation divides
    # by the group's size, ours by one less. No epsilon is given.
    "grao": AlgorithmSettings(
        name="grao",
        samples_per_prompt=8,
        companion="given",
        advantage="alignment",
        imitation_coef=0.5,
        alignment_coef=0.6,
        loss="policy_gradient",
        aggregation="sequence_mean",
    ),
}
