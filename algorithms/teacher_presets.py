"""Named algorithms that learn from a teacher, with their published settings.

Part of `manta.algorithms.presets`. Who the teacher is stands in the run file (`reference`).
"""

from __future__ import annotations

from collections.abc import Mapping

from manta.algorithms.part_settings import KlSettings
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.teacher_settings import TeacherSettings

TEACHER_PRESETS: Mapping[str, AlgorithmSettings] = {
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
    # On-policy distillation over distributions: GKD, arXiv 2306.13649 (as TRL and ms-swift document
    # it; the paper could not be read), with samples of the student alone (lambda 1) and the
    # reverse KL (beta 1), that of preset `distillation`. Theirs takes the teacher's whole
    # vocabulary; the 64 likeliest tokens and the rest as one outcome are ours, so are means over
    # tokens and 4 samples.
    "topk_distillation": AlgorithmSettings(
        name="topk_distillation",
        samples_per_prompt=4,
        advantage="none",
        loss="teacher_kl",
        teacher=TeacherSettings(top_k=64, interpolation=1.0),
        aggregation="token_mean",
    ),
    # AlignDistil, arXiv 2503.02832 (its abstract and its authors' code, github.com/songmzhang/
    # AlignDistil, commit 0c7e5c5; the paper itself could not be read): the reverse KL to a teacher
    # of combined logits (`reference.combine`, `reference.contrast`), one sample of a prompt, the
    # mean over a row's tokens first, as in the script for samples of the policy. It takes the whole
    # vocabulary; 64 tokens and the rest are ours.
    "align_distil": AlgorithmSettings(
        name="align_distil",
        samples_per_prompt=1,
        advantage="none",
        loss="teacher_kl",
        teacher=TeacherSettings(top_k=64, interpolation=1.0),
        aggregation="sequence_mean",
    ),
}
