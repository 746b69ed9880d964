"""Named algorithms that are GRPO with another loss, with their published settings.

Part of `manta.algorithms.presets`. They differ in what ratios weigh, and in which tokens they hold
back. Where none is named, groups are of 8, and there is no KL.
"""

from __future__ import annotations

from collections.abc import Mapping

from manta.algorithms.part_settings import CovarianceSettings, FilterSettings, OffPolicySettings
from manta.algorithms.settings import AlgorithmSettings

LOSS_PRESETS: Mapping[str, AlgorithmSettings] = {
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
}
