"""Named algorithms with their published settings.

Loads no torch, so that a run file can be checked. Overriding fields is the run file's work
(`manta.orchestrator`), what must hold for any settings is `manta.algorithms.contradictions`'. Those
that imitate or compare are `manta.algorithms.preference_presets`', those with rewards within a
trajectory `manta.algorithms.turn_presets`', those with tags `manta.algorithms.condition_presets`',
those that learn from a teacher's distributions `manta.algorithms.teacher_presets`'. The numbers
that a paper leaves open are named beside the preset. Where none is named, groups are of 8, the clip
is PPO's 0.2, and there is no KL.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from manta.algorithms.condition_presets import CONDITION_PRESETS
from manta.algorithms.part_settings import (
    CovarianceSettings,
    CriticSettings,
    DifficultySettings,
    FilterSettings,
    ImplicitRewardSettings,
    KlSettings,
    OffPolicySettings,
)
from manta.algorithms.preference_presets import PREFERENCE_PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.teacher_presets import TEACHER_PRESETS
from manta.algorithms.turn_presets import TURN_PRESETS

PRESETS: Mapping[str, AlgorithmSettings] = MappingProxyType(
    {
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
        # IcePop, Ring-1T report, arXiv 2510.18855, training recipe: 8 samples, no KL, tokens masked
        # whose ratio of learner to engine leaves 0.5 to 5. The report does not give the clip (0.2
        # is PPO's).
        "icepop": AlgorithmSettings(
            name="icepop",
            samples_per_prompt=8,
            advantage="group_relative",
            divide_by_std=True,
            loss="clipped_surrogate",
            clip_low=0.2,
            clip_high=0.2,
            aggregation="sequence_mean",
            proximal="learner",
            off_policy=OffPolicySettings(correction="mask", level="token", low=0.5, high=5.0),
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
        # On-policy distillation, Lu et al. 2025 (thinkingmachines.ai/blog/on-policy-distillation):
        # the reference is the teacher (`reference.model`), a token's advantage is minus the reverse
        # KL's estimate at it alone, no rewards; coefficient 1, discount 0 and 4 samples are the
        # defaults of the authors' code. It bounds no ratio: make one update a step, and ours never
        # acts. Means over tokens, where it sums.
        "distillation": AlgorithmSettings(
            name="distillation",
            samples_per_prompt=4,
            advantage="none",
            aggregation="token_mean",
            kl=KlSettings(coef=1.0, estimator="k1", placement="reward", discount=0.0),
        ),
        # GSPO, arXiv 2507.18071, section 5.1: clip 3e-4 / 4e-4 of the row's ratio (and four updates
        # a step: set `updates_per_step`). Bounds that narrow ask for the learner's own log-probs.
        "gspo": AlgorithmSettings(
            name="gspo",
            samples_per_prompt=8,
            loss="gspo",
            clip_low=3e-4,
            clip_high=4e-4,
            aggregation="sequence_mean",
            proximal="learner",
        ),
        # The same, section 4.3, for advantages that differ within a row.
        "gspo_token": AlgorithmSettings(
            name="gspo_token",
            samples_per_prompt=8,
            loss="gspo_token",
            clip_low=3e-4,
            clip_high=4e-4,
            aggregation="sequence_mean",
            proximal="learner",
        ),
        # CISPO, MiniMax-M1, arXiv 2506.13585, section 3.1: weights without a lower bound, mean over
        # tokens, no KL. The report tunes the upper bound and does not give it: 5 is that of
        # ScaleRL, arXiv 2510.13786.
        "cispo": AlgorithmSettings(
            name="cispo",
            samples_per_prompt=8,
            loss="cispo",
            clip_low=1.0,
            clip_high=4.0,
            aggregation="token_mean",
        ),
        # GMPO, arXiv 2507.20673, section 4: token ratios within exp(-0.4) and exp(0.4).
        "gmpo": AlgorithmSettings(
            name="gmpo",
            samples_per_prompt=8,
            loss="gmpo",
            clip_low=0.4,
            clip_high=0.4,
            aggregation="sequence_mean",
        ),
        # SAPO, arXiv 2511.20347: temperatures 1.0 and 1.05.
        "sapo": AlgorithmSettings(
            name="sapo",
            samples_per_prompt=8,
            loss="sapo",
            tau_positive=1.0,
            tau_negative=1.05,
            aggregation="sequence_mean",
        ),
        # ROVER, He et al., arXiv 2509.24981, algorithm 1 and table 4: 8 samples, rewards less their
        # mean, rho 1, the value of what follows counts fully, no KL (128 prompts in four updates a
        # step, temperature 0.6, learning rate 1e-6: set them in the run). The authors' script
        # divides by the deviation too, the paper does not.
        "rover": AlgorithmSettings(
            name="rover",
            samples_per_prompt=8,
            divide_by_std=False,
            loss="rover",
            rho=1.0,
            successor_weight=1.0,
            aggregation="sequence_mean",
            proximal="learner",
        ),
        # Clip-Cov, arXiv 2505.22617, section 4: 2e-4 of the tokens, drawn from those of covariance
        # 1 to 5; 8 samples, groups without variance dropped (and eight updates a step: set
        # `updates_per_step`). Bounds of 0 and 2 on the ratio are those of the authors' script.
        "clip_cov": AlgorithmSettings(
            name="clip_cov",
            samples_per_prompt=8,
            loss="clip_cov",
            clip_low=1.0,
            clip_high=1.0,
            covariance=CovarianceSettings(share=2e-4, low=1.0, high=5.0),
            aggregation="token_mean",
            filters=(FilterSettings("zero_variance"),),
        ),
        # KL-Cov, the same: 2e-3 of the tokens of a 7B model (2e-4 of 32B), coefficient 1. With one
        # update a step it holds nothing back. The KL as the paper writes it: its listing takes
        # |log ratio| (`estimator: absolute`), the sign of which is rounding's in the first update.
        "kl_cov": AlgorithmSettings(
            name="kl_cov",
            samples_per_prompt=8,
            loss="kl_cov",
            covariance=CovarianceSettings(share=2e-3, coef=1.0),
            aggregation="token_mean",
            filters=(FilterSettings("zero_variance"),),
        ),
        # Truncated importance sampling, Yao et al. 2025, "Your Efficient RL Framework Secretly
        # Brings You Off-Policy RL Training": bound 2, laid over DAPO.
        "tis": AlgorithmSettings(
            name="tis",
            samples_per_prompt=16,
            clip_low=0.2,
            clip_high=0.28,
            aggregation="token_mean",
            proximal="learner",
            off_policy=OffPolicySettings(correction="truncate", level="token", high=2.0),
            filters=(FilterSettings("zero_variance"),),
        ),
        **PREFERENCE_PRESETS,
        **TURN_PRESETS,
        **CONDITION_PRESETS,
        **TEACHER_PRESETS,
    }
)
