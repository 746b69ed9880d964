"""The runs of `benchmarks.algorithms`: a warm start, and a stage for every preset that follows.

Owns what a preset is given beyond its own settings, and what has to be there before its stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from manta.algorithms.presets import PRESETS
from manta.envs.records import Json

WARM = "warm-start"
SAMPLES_PER_STEP = 1024
SAMPLES_PER_PROMPT = 16
LEARNING_RATE = 2e-4
"""At its height. It falls to 0 over the stage: held constant, the last step is as noisy as every
other, and of one seed's warm start of 40% `clip_cov` made 45% where it makes 76%."""
ROWS_PER_CALL = 256
"""Samples that travel together, in groups of one or of many."""
MAX_NEW_TOKENS = 8
EXAM: Mapping[str, Json] = {
    "prompts": 256,
    "samples_per_prompt": 8,
    "temperature": 1.0,
    "metric": "correct",
}
NUM_TASKS = 10_000
"""No fewer than there are sums of two digits."""
WRITTEN_PER_STEP = 256
EPOCHS = 5
"""In 50 steps of a loss that compares samples with written ones, where half of the prompts have no
pair: no written sample comes twice."""
_ROOT = Path(__file__).parent.parent

NO_STAGE = ("sft", "dpo", "reward_model")
"""The warm start itself; what is `online_dpo` from samples; one that leaves no policy."""

FROM_SAMPLES: Mapping[str, Json] = {"samples_from": "policy"}
"""Where the preset's own answers are given ones: the task's are right, every one."""

TAGGED: Mapping[str, Json] = {
    "condition": {"tags": ["=", ""], "bounds": [0.5]},
    "reward_temperature": 0.4,
}
"""Right answers stand under the prompts that the warm start knows, wrong ones under a tag. These
weigh a twelfth: with more the policy learnt them before it told the tags apart, and fell to none
of the sums within 50 steps."""

TOP_K: Mapping[str, Json] = {"teacher": {"top_k": 4}}
"""The task's vocabulary has 14 tokens, fewer than the presets' 64."""

OWN: Mapping[str, Mapping[str, Json]] = {
    "dr_grpo": {"constant_length": MAX_NEW_TOKENS},
    "gdpo": {"component_weights": {"correct": 1.0, "number": 0.1}},
    "prof": {"filters": [{"name": "process_consistency", "process": "short", "keep": 8}]},
    # Twice the policy's, as in the paper: the preset's is for a model of seven billion parameters
    "prime": {"implicit_reward": {"learning_rate": 2 * LEARNING_RATE}},
    "madpo": FROM_SAMPLES,
    "ipo": FROM_SAMPLES,
    "simpo": FROM_SAMPLES,
    "kto": {**FROM_SAMPLES, "reference_point": "samples"},
    "weighted_sft": FROM_SAMPLES,
    "c_rlft": {**FROM_SAMPLES, **TAGGED},
    # Nobody says anything after a sum: there is no feedback to learn from
    "leti": {**TAGGED, "train_feedback": False},
    "topk_distillation": TOP_K,
    "align_distil": TOP_K,
}
"""What a preset cannot do without, or leaves to the task."""

ONE_UPDATE = (
    *("reinforce", "reinforce_to_go", "remax", "grao", "rloo", "opo", "max_rl"),
    *("online_dpo", "madpo", "xpo", "ipo", "simpo", "kto"),
)
"""Those that are made for one update a step, and those of pairs and labels, in which no ratio
bounds a second one; the others make two. With two, at a constant rate, `kto` fell from 28% of the
sums to none within 35 steps, and `online_dpo` rose to 37% in 50 where one took it to 55% in 30."""

TEACHER: Mapping[str, Json] = {
    "name": "teacher",
    "algorithm": "sft",
    "start_from": f"stage:{WARM}",
    "steps": 450,
    "prompts_per_step": 128,
    "learning_rate": 1e-3,
    "decay": "linear",
    "evaluate": None,
}

TAUGHT = ("rto", "distillation", "topk_distillation", "align_distil")
"""Those that learn from a model that knows more: 450 more steps of worked sums."""

SCORERS: Mapping[str, Json] = {
    "teacher": {"model": "stage:teacher", "kind": "logprobs"},
    "before": {"model": f"stage:{WARM}", "kind": "logprobs"},
}

STAGES: Mapping[str, Mapping[str, Json]] = {
    "distillation": {"reference": {"model": "stage:teacher"}},
    "topk_distillation": {"reference": {"model": "stage:teacher"}},
    # Its authors train the two models on preferences, and on the same ones reversed
    "align_distil": {
        "reference": {
            "combine": {"stage:teacher": 1},
            "contrast": {"toward": "stage:teacher", "away": f"stage:{WARM}"},
        }
    },
    "mapo": {
        "reward": {
            "formula": "correct",
            "within": {"turn": 1.0},
            "components": {"correct": "exact", "turn": {"reward": "by_turn", "rule": "exact"}},
        }
    },
    # Its authors' tokens are paid by a model that DPO has trained
    "rto": {
        "reward": {
            "formula": "correct",
            "within": {"likely": 1.0},
            "components": {
                "correct": "exact",
                "likely": {"reward": "token_log_ratio", "scorer": "teacher", "against": "before"},
            },
        }
    },
}
"""What the stage of a preset has beside its algorithm."""


def presets() -> list[str]:
    return [name for name in PRESETS if name not in NO_STAGE]


def run_file(name: str, folder: Path, seed: int, steps: int, names: Sequence[str]) -> Json:
    demo = yaml.safe_load((_ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    held_out = {"every_steps": steps, "prompts": 512, "metric": "correct"}
    [warm] = [stage for stage in demo["stages"] if stage["name"] == WARM]
    teacher = [TEACHER] if set(names) & set(TAUGHT) else []
    return {
        **demo,
        "run": {"name": name, "seed": seed, "dir": str(folder)},
        "reward": {**demo["reward"], "formula": "correct"},
        **({"scorers": SCORERS} if "rto" in names else {}),
        "rollout": {**demo["rollout"], "max_new_tokens": MAX_NEW_TOKENS},
        "environment": {"groups_per_call": ROWS_PER_CALL // max(map(_samples, names))},
        "evaluate": held_out,
        "stages": [warm, *teacher, *(part for name in names for part in stages(name, steps))],
        "checkpoint": {"every_steps": steps, "keep": 1},
    }


def stage_name(preset: str) -> str:
    return preset.replace("_", "-")


def exam_name(preset: str) -> str:
    return f"{stage_name(preset)}-exam"


def stages(name: str, steps: int) -> list[dict[str, Json]]:
    """That of the preset, and its exam; before it, where it compares samples with those of the
    reference, one that writes some of every task."""
    own = stage(name, steps)
    exam: dict[str, Json] = {"name": exam_name(name), "kind": "evaluate", "evaluate": dict(EXAM)}
    if PRESETS[name].companion != "written":
        return [own, exam]
    written: dict[str, Json] = {
        "name": f"{own['name']}-reference",
        "kind": "generate",
        "model": f"stage:{WARM}",
        "algorithm": {"name": "grpo", "samples_per_prompt": EPOCHS},
        "steps": math.ceil(NUM_TASKS / WRITTEN_PER_STEP),
        "prompts_per_step": WRITTEN_PER_STEP,
    }
    return [written, {**own, "companions_from": f"stage:{written['name']}"}, exam]


def stage(name: str, steps: int) -> dict[str, Json]:
    samples = _samples(name)
    return {
        "name": stage_name(name),
        "algorithm": {"name": name, "samples_per_prompt": samples, **OWN.get(name, {})},
        "start_from": f"stage:{WARM}",
        "steps": steps,
        "prompts_per_step": SAMPLES_PER_STEP // samples,
        "updates_per_step": 1 if name in ONE_UPDATE else 2,
        "learning_rate": LEARNING_RATE,
        "decay": "linear",
        **STAGES.get(name, {}),
    }


def _samples(preset: str) -> int:
    """Of a prompt; where there are one or two, there are as many more prompts instead."""
    settings = PRESETS[preset]
    if settings.is_paired:
        return max(2, settings.samples_per_prompt)
    return 1 if settings.samples_per_prompt == 1 else SAMPLES_PER_PROMPT
