"""Scoring batches of ever other sizes: products rounded up to few sizes, against as they come.

The demo's model without gradients, one thread, batches of 100 to 128 prompts with two answers of
random length each: hardly two have as many tokens. oneDNN makes a kernel for every size of a
product. Each side in processes of their own, taking turns, and each ratio that of one turn; memory
is by how much the process has grown after the first batch.

    python -m benchmarks.other_sizes [--batches N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.report import Figure, write
from manta.actors.models import products
from manta.actors.models.policy import evaluate, in_batches
from manta.actors.rows import Row

CLAIM = "Scoring batches of ever other sizes on a CPU: products of rounded sizes, as they come"
SIDES = ("rounded", "as they come")
TOKENS_PER_BATCH = 16384
WORDS, MAX_NEW_TOKENS = 14, 8
_PAGES_PER_MIB = (1 << 20) // 4096


def rows(generator: np.random.Generator) -> list[Row]:
    made: list[Row] = []
    for _ in range(int(generator.integers(100, 128))):
        prompt = generator.integers(0, WORDS, generator.integers(5, 7)).astype(np.int32)
        for _ in range(2):
            answer = generator.integers(0, WORDS, generator.integers(1, MAX_NEW_TOKENS + 1))
            mask = np.zeros(len(prompt) + len(answer), bool)
            mask[len(prompt) :] = True
            ids = np.concatenate([prompt, answer.astype(np.int32)])
            made.append(Row(len(made), ids, mask, None, None, {}))
    return made


def measure_here(side: str, batches: int) -> dict[str, float]:
    """Processor seconds for `batches` batches and MiB grown by, in this process, which must be
    fresh."""
    torch.set_num_threads(1)
    if side == "as they come":
        products.filled = lambda rows_MD: rows_MD
    config = Qwen2Config(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=344,
        vocab_size=WORDS,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    products.widen_linears(model)
    score = partial(in_batches, partial(evaluate, model))
    generator = np.random.default_rng(0)
    with torch.inference_mode():
        score(rows(generator), ["logprob"], 1.0, TOKENS_PER_BATCH)
        before, begin = _mib(), time.process_time()
        for _ in range(batches):
            score(rows(generator), ["logprob"], 1.0, TOKENS_PER_BATCH)
    return {"seconds": time.process_time() - begin, "mib": _mib() - before}


def _mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) / _PAGES_PER_MIB


def measured_apart(side: str, batches: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.other_sizes", f"--batches={batches}", "--measure", side],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--batches", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=SIDES, help="print one side's figures and end")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_here(arguments.measure, arguments.batches)))
        return
    turns = []
    for index in range(arguments.rounds):
        order = SIDES if index % 2 else SIDES[::-1]
        turns.append({side: measured_apart(side, arguments.batches) for side in order})
    times = [tuple(turn[side]["seconds"] for side in SIDES) for turn in turns]
    grown = [tuple(turn[side]["mib"] for side in SIDES) for turn in turns]
    faster = statistics.median(theirs / ours for ours, theirs in times)
    held, held_before = (statistics.median(sides) for sides in zip(*grown, strict=True))
    write(
        "other_sizes",
        CLAIM,
        [
            Figure("speed, of as they come", faster, "x", 1.2, None, "higher", times),
            Figure("grown by, rounded", held, "MiB", 128, None, "lower", [a for a, _ in grown]),
            Figure(
                "grown by, as they come", held_before, "MiB", None, None, "lower",
                [b for _, b in grown],
            ),
        ],
        ["torch"],
        1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
