"""Tokens per second that the learner trains: packed rows, bfloat16, and its share of the peak.

Packed against padded rows at long-tail lengths, in two forms: rows in random order padded to the
longest of their micro-batch, as most trainers do, which the claim is against; and Manta's own
padded way, for models that cannot be packed, whose batches are cut from rows sorted by length so
that little is padded. All three compute at most as many tokens at once, padding counted. Tokens are
those of the rows, padding left out. Sides take turns; each ratio is that of one round.

    python -m benchmarks.learner
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.padded_rows import Side, packed, packed_cut, relative_gap, rows_of_lengths, sides
from benchmarks.pinned_lengths import PROMPT_TOKENS, VOCABULARY, pinned_table
from benchmarks.report import Figure, write
from manta.actors.models.causal import build_model
from manta.actors.models.precision import has_fast_bfloat16
from manta.actors.models.products import linear
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.rows import Row
from manta.orchestrator.model_sizes import model_sizes, num_hidden

THREADS = 2
BUDGET = 2560
SMALL = ModelSpec(
    build=BuildSpec(layers=4, width=256, heads=4, mlp_width=704, tie_embeddings=False), context=2048
)
LARGE = ModelSpec(build=BuildSpec(layers=10, width=640, heads=10, mlp_width=1760), context=2048)
"""50 million parameters."""
CLAIM = "Rows trained without padding, against padded to the longest of a random micro-batch"


def workloads() -> Mapping[str, list[Row]]:
    """Uniform, the long tail of `vs_trl`, and a longer one."""
    random = np.random.default_rng(0)
    tail = pinned_table("long_tail", 8, 8, 0).lengths.flatten().tolist()
    longer = np.clip(np.rint(random.lognormal(np.log(128), 1.0, 64)), 1, 1024).astype(int).tolist()
    lengths = {"uniform 64": [64] * 64, "median 16, cap 256": tail, "median 128, cap 1024": longer}
    return {
        name: rows_of_lengths(each, PROMPT_TOKENS, VOCABULARY) for name, each in lengths.items()
    }


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turns whose order alternates, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name in list(runs) if index % 2 else reversed(list(runs)):
            begin = time.perf_counter()
            runs[name]()
            if index:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def packing(name: str, rows: Sequence[Row], rounds: int, peak: float) -> list[Figure]:
    compared = sides(partial(build_model, SMALL, VOCABULARY, 0))
    for side in compared.values():
        side.update(rows, BUDGET)
    gradients = [side.gradient() for side in compared.values()]
    gap = max(relative_gap(gradients[-1], other) for other in gradients[:-1])
    runs = {label: partial(side.update, rows, BUDGET) for label, side in compared.items()}
    seconds = interleaved(runs, rounds)
    tokens = sum(len(row.token_ids) for row in rows)
    speed = tokens / statistics.median(seconds["packed"])
    bars = {"padded, random order": 0.98 if name.startswith("uniform") else 2.0}
    figures = []
    for label in list(seconds)[:-1]:
        pairs = list(zip(seconds[label], seconds["packed"], strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        told = f"{name}: tokens/s, packed / {label}"
        figures.append(Figure(told, ratio, "x", bars.get(label), None, "higher", pairs))
    share = speed * flops_per_token(SMALL, rows) / peak
    return [
        *figures,
        Figure(f"{name}: packed", speed, "tokens/s", None, None, "higher", seconds["packed"]),
        Figure(f"{name}: share of the matrix peak", share, "", None, None, "higher", [share]),
        Figure(f"{name}: gradients, relative difference", gap, "", 1e-5, None, "lower", [gap]),
    ]


def number_formats(rounds: int, peaks: Mapping[torch.dtype, float]) -> list[Figure]:
    """bfloat16 by autocast against float32, at 50 million parameters and equal rows."""
    rows = rows_of_lengths([112] * 16, PROMPT_TOKENS, VOCABULARY)
    trained = {
        "fp32": Side(build_model(LARGE, VOCABULARY, 0), packed, packed_cut, "fp32"),
        "bf16": Side(build_model(LARGE, VOCABULARY, 0), packed, packed_cut, "bf16"),
    }
    seconds = interleaved(
        {name: partial(side.update, rows, BUDGET) for name, side in trained.items()}, rounds
    )
    pairs = list(zip(seconds["fp32"], seconds["bf16"], strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    has_amx = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    figures = [
        Figure(
            f"50M parameters: tokens/s, bf16 / fp32 ({'AMX' if has_amx else 'no AMX'})",
            ratio,
            "x",
            1.5 if has_amx else None,
            None,
            "higher",
            pairs,
        )
    ]
    tokens = sum(len(row.token_ids) for row in rows)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        speed = tokens / statistics.median(seconds[name])
        share = speed * flops_per_token(LARGE, rows) / peaks[dtype]
        told = f"50M parameters: {name}"
        figures += [
            Figure(told, speed, "tokens/s", None, None, "higher", seconds[name]),
            Figure(f"{told}, share of the matrix peak", share, "", None, None, "higher", [share]),
        ]
    return figures


def flops_per_token(spec: ModelSpec, rows: Sequence[Row], vocabulary: int = VOCABULARY) -> float:
    """Forward and backward, per token of `rows`: 6 per parameter of a matrix and 6 Q S per token
    that it attends to on average."""
    sizes = model_sizes(spec, vocabulary)
    width, layers = sizes.query_width, sizes.layers
    lengths = np.array([len(row.token_ids) for row in rows], np.float64)
    trained = sum(row.num_tokens for row in rows) / float(lengths.sum())
    attention = 6 * width * layers * float((lengths**2).sum() / lengths.sum())
    return 6 * (num_hidden(sizes) + trained * vocabulary * sizes.width) + attention


def matrix_peak(dtype: torch.dtype, repeats: int = 5) -> float:
    """Floating-point operations a second of a product of 2048 x 2048 matrices."""
    left, right = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    seconds = interleaved({"product": lambda: linear(left, right)}, repeats)["product"]
    return 2 * 2048.0**3 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner")
    parser.add_argument("--rounds", type=int, default=9)
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(THREADS)
    peaks = {dtype: matrix_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    figures: list[Figure] = []
    for name, rows in workloads().items():
        figures += packing(name, rows, rounds, peaks[torch.float32])
    if has_fast_bfloat16():
        figures += number_formats(max(3, rounds // 2), peaks)
    for dtype, peak in peaks.items():
        told = f"matrix peak, {str(dtype).removeprefix('torch.')}"
        figures.append(Figure(told, peak / 1e9, "GFLOP/s", None, None, "higher", [peak / 1e9]))
    write("learner", CLAIM, figures, ["torch", "transformers"], THREADS)


if __name__ == "__main__":
    main()
