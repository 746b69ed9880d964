"""Named algorithms that learn rows under a tag that says how good they are.

Part of `manta.algorithms.presets`. Of both papers the abstracts could be read, and the authors'
code; the numbers that these leave open are named beside the preset. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from manta.algorithms.condition import ConditionSettings
from manta.algorithms.settings import AlgorithmSettings

CONDITION_PRESETS: Mapping[str, AlgorithmSettings] = {
    # C-RLFT, OpenChat, Wang et al., arXiv 2309.11235: answers of classes, each class with a reward
    # and a tag, by maximum likelihood weighed by exp(reward / beta); what is generated has the
    # experts' tag. The authors' code has the class in every role's name ("GPT4 User:"); the tags,
    # their one place before the prompt, beta (1, in the rewards' scale) and two answers a prompt
    # are ours. The weights are token weights, as in that code.
    "c_rlft": AlgorithmSettings(
        name="c_rlft",
        samples_from="given",
        samples_per_prompt=2,
        advantage="reward",
        divide_by_std=False,
        loss="cross_entropy",
        aggregation="token_mean",
        reward_temperature=1.0,
        condition=ConditionSettings(("<|bad|>", "<|good|>"), (0.5,)),
    ),
    # LeTI, Wang et al., arXiv 2305.10314: the tag, the instruction, the program and, where it
    # failed, the feedback's text, by maximum likelihood, again and again on the policy's own
    # samples. Both tags and 128 samples, at temperature 1, are those of the authors' scripts: all
    # prompts in a round, 3 epochs over it, learning rate 1e-5 (350M parameters) or 5e-6 (2B), which
    # are the stage's to set. Their code also learns the instruction, has the feedback between tag
    # and instruction, and mixes in as many texts of pretraining: not here.
    "leti": AlgorithmSettings(
        name="leti",
        samples_per_prompt=128,
        advantage="reward",
        divide_by_std=False,
        loss="cross_entropy",
        aggregation="token_mean",
        condition=ConditionSettings(("<|bad|>", "<|good|>"), (0.5,)),
        train_feedback=True,
    ),
}
