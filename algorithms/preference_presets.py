"""Named algorithms that imitate, compare or label, with their published settings.

Part of `manta.algorithms.presets`, where they are looked up. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from manta.algorithms.part_settings import MarginWeightSettings, RewardModelSettings
from manta.algorithms.settings import AlgorithmSettings

PREFERENCE_PRESETS: Mapping[str, AlgorithmSettings] = MappingProxyType(
    {
        # Maximum likelihood of given answers, mean over tokens.
        "sft": AlgorithmSettings(
            name="sft",
            samples_from="given",
            samples_per_prompt=1,
            advantage="reward",
            divide_by_std=False,
            loss="cross_entropy",
            aggregation="token_mean",
        ),
        # RAFT, Dong et al., arXiv 2304.06767: the best of a prompt's samples, by the reward. 8 of
        # them is ours.
        "raft": AlgorithmSettings(
            name="raft",
            samples_per_prompt=8,
            advantage="reward",
            divide_by_std=False,
            loss="cross_entropy",
            aggregation="token_mean",
            keep_best=1,
        ),
        # Rejection sampling, Yuan et al., arXiv 2308.01825: all samples that are right, for rewards
        # of 0 and 1. 8 of them is ours. Theirs differ in their equations: not looked at here.
        "rejection_sampling": AlgorithmSettings(
            name="rejection_sampling",
            samples_per_prompt=8,
            advantage="reward",
            divide_by_std=False,
            loss="cross_entropy",
            aggregation="token_mean",
            keep_above=0.5,
        ),
        # Reward-weighted regression, Peters and Schaal 2007, and with a reward for each class of
        # data C-RLFT, arXiv 2309.11235. The temperature is in the rewards' scale: 1 is ours.
        "weighted_sft": AlgorithmSettings(
            name="weighted_sft",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="cross_entropy",
            aggregation="token_mean",
            reward_temperature=1.0,
        ),
        # Rafailov et al., arXiv 2305.18290, appendix B: beta 0.1 (64 pairs a step, learning rate
        # 1e-6 after a ramp of 150 steps, RMSprop: set them in the stage). Its pairs are two answers
        # of a prompt.
        "dpo": AlgorithmSettings(
            name="dpo",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="dpo",
            unit="pair",
            pairs="best_worst",
            beta=0.1,
        ),
        # MADPO, Rho, arXiv 2510.05342: DPO with a weight by margin; 0.5, 2, steepness 1 and a
        # threshold of log(0.999 / 0.001) are those of the author's notebook, and so is beta 0.1.
        "madpo": AlgorithmSettings(
            name="madpo",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="dpo",
            unit="pair",
            pairs="best_worst",
            beta=0.1,
            margin_weight=MarginWeightSettings(),
        ),
        # Online DPO, Guo et al., arXiv 2402.04792: two samples of the policy, ranked by the run's
        # reward. beta 0.1 is TRL's.
        "online_dpo": AlgorithmSettings(
            name="online_dpo",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="dpo",
            unit="pair",
            pairs="best_worst",
            beta=0.1,
        ),
        # XPO, Xie et al., arXiv 2405.21046: a sample of the policy and one of the reference, which
        # a generate stage has written (`companions_from`), and a bonus for what the reference does
        # not say. beta 0.1 and coefficient 1e-5 are TRL's; the paper's could not be read.
        "xpo": AlgorithmSettings(
            name="xpo",
            samples_per_prompt=1,
            companion="written",
            advantage="reward",
            divide_by_std=False,
            loss="xpo",
            unit="pair",
            pairs="companion",
            beta=0.1,
            exploration_coef=1e-5,
        ),
        # IPO, Azar et al., arXiv 2310.12036, eq. 17. Means over tokens, which the paper does not
        # say and its authors did, as TRL tells; beta (the paper's tau) 0.1 is TRL's too.
        "ipo": AlgorithmSettings(
            name="ipo",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="ipo",
            unit="pair",
            pairs="best_worst",
            beta=0.1,
            length_normalized=True,
        ),
        # SimPO, Meng et al., arXiv 2405.14734: no reference. beta 2, target margin 0.5, the
        # defaults of the authors' code (0.25 of beta; both want tuning, they say).
        "simpo": AlgorithmSettings(
            name="simpo",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="simpo",
            unit="pair",
            pairs="best_worst",
            beta=2.0,
            target_margin=0.5,
        ),
        # KTO, Ethayarajh et al., arXiv 2402.01306: beta 0.1 and equal weights, the defaults of the
        # authors' code. Their reference point is made of answers to other prompts, which nothing
        # here scores: on given answers that of their first report is, on samples the KL itself.
        "kto": AlgorithmSettings(
            name="kto",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="kto",
            beta=0.1,
            reference_point="other_class",
        ),
        # PACS, Li et al., arXiv 2509.02522: 8 samples, beta 1, classes balanced by question, no KL,
        # the settings of the authors' scripts (1024 prompts a step in four updates, learning rate
        # 1e-6, and no bound on the gradient's norm: set them in the run).
        "pacs": AlgorithmSettings(
            name="pacs",
            samples_per_prompt=8,
            advantage="reward",
            divide_by_std=False,
            loss="pacs",
            unit="group",
            beta=1.0,
            balance_classes=True,
            proximal="learner",
        ),
        # InstructGPT's, Ouyang et al., arXiv 2203.02155, eq. 1 and section 3.5: all pairs of a
        # prompt's answers, and every prompt counts the same. With two answers a prompt it is that
        # of Stiennon et al., arXiv 2009.01325. The paper starts from the supervised model; learning
        # rate 9e-6 for 6B parameters, one epoch (appendix C.2).
        "reward_model": AlgorithmSettings(
            name="reward_model",
            samples_from="given",
            samples_per_prompt=2,
            advantage="reward",
            divide_by_std=False,
            loss="bradley_terry",
            unit="group",
            pairs="all",
            reward_model=RewardModelSettings(),
        ),
    }
)
