"""Weights before and after a real optimizer step: what a delta has to be made of.

A causal language model of the learner's own backend reads words of this repository (their
frequencies are a text's, so that some embeddings move often and some never), warms up on their
likelihood, then takes policy-gradient steps with random advantages of rows at a given learning
rate. Masters are float32; what is handed out is in the model's dtype, as in a run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.models.causal import build_model
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.rows import Row
from manta.actors.weights import Weights
from manta.algorithms.tokens import LossTerms
from manta.envs.records import Int32, WeightVersion

Dtype = Literal["float32", "bfloat16"]
VOCAB = 8192
ROWS, LENGTH = 8, 96
WARM_UP = 6
SETTLE = 2
"""Steps at a learning rate before the one that is measured."""
SIZES = {
    "3M": BuildSpec(layers=3, width=192, heads=4, mlp_width=512),
    "30M": BuildSpec(layers=8, width=512, heads=8, mlp_width=1408),
    "120M": BuildSpec(layers=16, width=768, heads=12, mlp_width=2048),
}
SOURCES = Path(__file__).parent.parent


@dataclass(frozen=True)
class Step:
    """Two versions of one model, a step at `rate` apart."""

    rate: float
    before: Weights
    after: Weights


def steps(size: str, dtype: Dtype, rates: Sequence[float]) -> Iterator[Step]:
    """One step at each of `rates`, of one model that goes on learning."""
    model = build_model(ModelSpec(build=SIZES[size], context=LENGTH, dtype=dtype), VOCAB, 0)
    backend = PlainBackend(model, LearnerSettings(tokens_per_micro_batch=ROWS * LENGTH))
    text, random = words(), np.random.default_rng(0)
    for _ in range(WARM_UP):
        _update(backend, text, random, 3e-4, is_rewarded=False)
    for number, rate in enumerate(rates):
        for _ in range(SETTLE):
            _update(backend, text, random, rate, is_rewarded=True)
        before = backend.weights(WeightVersion(2 * number, 0))
        _update(backend, text, random, rate, is_rewarded=True)
        yield Step(rate, before, backend.weights(WeightVersion(2 * number + 1, 0)))


def words() -> Int32:
    """int32[W]: this repository's texts as ranks of their words, the rarest sharing ids."""
    files = sorted([*SOURCES.glob("docs/*.md"), *SOURCES.glob("*/*.py"), *SOURCES.glob("*.md")])
    found = [w for f in files for w in re.findall(r"\w+|[^\w\s]", f.read_text(encoding="utf-8"))]
    ranks = {word: rank for rank, (word, _) in enumerate(Counter(found).most_common())}
    return np.array([ranks[word] % VOCAB for word in found], np.int32)


def _update(
    backend: PlainBackend, text: Int32, random: np.random.Generator, rate: float, is_rewarded: bool
) -> None:
    starts = random.integers(0, len(text) - LENGTH, ROWS)
    mask = np.arange(LENGTH) > 0
    rows = [Row(i, text[s : s + LENGTH], mask, None, None, {}) for i, s in enumerate(starts)]
    advantages = random.standard_normal(ROWS) if is_rewarded else np.ones(ROWS)
    advantage_T = torch.from_numpy(np.repeat(advantages, LENGTH - 1)).float()

    def loss(batch: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        return LossTerms(-(advantage_T * stats["logprob"]).mean(), {}, {})

    metrics = backend.update([rows], ("logprob",), 1.0, loss, rate)
    if metrics["skipped_updates"]:
        raise RuntimeError(f"a step at learning rate {rate:g} was not finite")
