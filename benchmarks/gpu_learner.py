"""Model FLOP utilisation of the learner on a GPU: dense models of 0.5 and 1.5 billion parameters.

UNPROVEN: written without a GPU to run it on. One update over packed rows of long-tail lengths, in
bfloat16 over float32 masters, with AdamW, as a learner rank makes it; backend by backend. FLOPs are
those that the model needs (`benchmarks.learner.flops_per_token`): nothing for what is computed
twice. The peak is the chip's own where it is known here, and a large product's speed is told too.

    python -m benchmarks.gpu_learner [--size 0.5B]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.learner import flops_per_token
from benchmarks.padded_rows import rows_of_lengths
from benchmarks.report import Figure, write
from manta.actors.backends.protocol import Backend
from manta.actors.backends.registry import build_backend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.micro_batches import micro_batches
from manta.actors.models.causal import build_model
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.rows import Row
from manta.algorithms.tokens import LossTerms

CONTEXT = 4096
VOCABULARY = 151_936
PROMPT_TOKENS = 256
BUDGET = 8192
ROWS = 128
CLAIM = "Model FLOP utilisation of one learner rank on a GPU, packed rows in bfloat16"
SIZES: Mapping[str, BuildSpec] = {
    "0.5B": BuildSpec(layers=24, width=896, heads=14, kv_heads=2, mlp_width=4864),
    "1.5B": BuildSpec(layers=28, width=1536, heads=12, kv_heads=2, mlp_width=8960),
}
PEAKS: Mapping[str, float] = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Dense bfloat16 operations a second by the name in torch's, from NVIDIA's data sheets (SXM)."""


def model_of(size: str) -> ModelSpec:
    return ModelSpec(build=SIZES[size], context=CONTEXT, dtype="bfloat16")


def some_rows() -> list[Row]:
    """Answers with a median of 512 tokens and a long tail."""
    random = np.random.default_rng(0)
    lengths = np.rint(random.lognormal(np.log(512), 1.0, ROWS)).clip(1, CONTEXT - PROMPT_TOKENS)
    return rows_of_lengths(lengths.astype(int).tolist(), PROMPT_TOKENS, VOCABULARY)


def one_update(backend: Backend, rows: Sequence[Row]) -> tuple[float, float]:
    """Seconds until the GPU is done, and the gradient's norm."""
    tokens = sum(row.num_tokens for row in rows)

    def loss(_: Sequence[Row], stats: Mapping[str, Tensor]) -> LossTerms:
        return LossTerms(-stats["logprob"].sum() / tokens, {}, {})

    torch.cuda.synchronize()
    begin = time.perf_counter()
    metrics = backend.update(micro_batches(rows, BUDGET), ("logprob",), 1.0, loss, 1e-6)
    torch.cuda.synchronize()
    return time.perf_counter() - begin, metrics["grad_norm"]


def known_peak() -> float | None:
    name = torch.cuda.get_device_name()
    return next((peak for chip, peak in PEAKS.items() if chip in name), None)


def product_speed(repeats: int = 20) -> float:
    """Operations a second of a product of 8192 x 8192 matrices in bfloat16."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    return repeats * 2 * 8192.0**3 / (time.perf_counter() - begin)


def measured(size: str, name: str, rounds: int) -> list[Figure]:
    rows = some_rows()
    model = build_model(model_of(size), VOCABULARY, 0).to("cuda")
    backend = build_backend(LearnerSettings(backend=name, devices=1), model)
    for _ in range(2):
        one_update(backend, rows)
    torch.cuda.reset_peak_memory_stats()
    seconds = [one_update(backend, rows)[0] for _ in range(rounds)]
    tokens = sum(len(row.token_ids) for row in rows)
    speed = tokens / statistics.median(seconds)
    flops = flops_per_token(model_of(size), rows, VOCABULARY)
    label = f"{size}, {name}"
    rate = speed * flops / 1e12
    memory = torch.cuda.max_memory_allocated() / 2**30
    figures = [
        Figure(label, speed, "tokens/s", None, None, "higher", seconds),
        Figure(f"{label}: memory at most", memory, "GiB", None, None, "lower", [memory]),
        Figure(f"{label}: operations", rate, "TFLOP/s", None, None, "higher", [rate]),
    ]
    peak = known_peak()
    if peak is not None:
        share = [tokens / each * flops / peak for each in seconds]
        used = statistics.median(share)
        figures.append(Figure(f"{label}: MFU", used, "", None, 0.4, "higher", share))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_learner")
    parser.add_argument("--size", choices=tuple(SIZES), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_learner: torch sees no GPU here: nothing is measured")
        return 0
    figures: list[Figure] = []
    for size in chosen.size or SIZES:
        for name in ("plain", "fsdp"):
            figures += measured(size, name, chosen.rounds)
            torch.cuda.empty_cache()
    speed = product_speed() / 1e12
    figures.append(Figure("a large product", speed, "TFLOP/s", None, None, "higher", [speed]))
    write("gpu_learner", CLAIM, figures, ["torch", "transformers"], 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
