"""Memory and time of log-probs and entropy over a vocabulary, against making all logits at once.

4,096 tokens, 32,768 words, float32, forward and backward to hidden states and head weight. Memory
is what a fresh process holds at its peak beyond what it held before (resident set, gradients
included); time is of rounds in one process, the two sides taking turns, and each ratio that of one
round.

    python -m benchmarks.logprob_memory
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from benchmarks.report import Figure, write
from manta.actors.models.vocabulary import token_statistics

TOKENS, WORDS, WIDTH, THREADS = 4096, 32768, 256, 2
WARM_TOKENS = 160
MEMORY_ROUNDS = 2
"""The peak hardly differs from one process to the next."""
CLAIM = (
    f"Log-prob and entropy of {TOKENS:,} tokens over {WORDS:,} words, forward and backward, "
    "against all logits at once"
)
MIB = 1 << 20
Side: TypeAlias = Callable[["Inputs", bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Inputs:
    hidden: Tensor
    weight: Tensor
    targets: Tensor


def inputs(tokens: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator)
    weight = torch.randn(WORDS, WIDTH, generator=generator) / WIDTH**0.5
    targets = torch.randint(0, WORDS, (tokens,), generator=generator)
    return Inputs(hidden.requires_grad_(), weight.requires_grad_(), targets)


def plain(given: Inputs, entropy_trains: bool) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(torch.nn.functional.linear(given.hidden, given.weight), -1)
    logprob = logp.gather(1, given.targets[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_trains):
        entropy = -(logp.exp() * logp).sum(-1)
    return logprob, entropy


def chunked(given: Inputs, entropy_trains: bool) -> tuple[Tensor, Tensor]:
    found = token_statistics(
        given.hidden, given.weight, None, given.targets, 1.0, ("logprob", "entropy")
    )
    return found["logprob"], found["entropy"]


SIDES: Mapping[str, Side] = {"plain": plain, "chunked": chunked}


def run(side: Side, given: Inputs, entropy_trains: bool) -> tuple[float, list[Tensor]]:
    """Seconds; log-probs, entropies and the two gradients."""
    given.hidden.grad = given.weight.grad = None
    begin = time.perf_counter()
    logprob, entropy = side(given, entropy_trains)
    loss = -logprob.sum() - 0.01 * entropy.sum() if entropy_trains else -logprob.sum()
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - begin
    assert given.hidden.grad is not None and given.weight.grad is not None
    return seconds, [logprob.detach(), entropy.detach(), given.hidden.grad, given.weight.grad]


def measure_here(name: str, entropy_trains: bool) -> float:
    """MiB that one pass takes at its peak, in this process, which must be fresh: libraries are
    warmed up by a few tokens first."""
    run(SIDES[name], inputs(WARM_TOKENS), entropy_trains)
    given = inputs(TOKENS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    run(SIDES[name], given, entropy_trains)
    return (_resident("VmHWM") - before) / MIB


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def measured_apart(name: str, entropy_trains: bool) -> float:
    """`measure_here` in a process of its own."""
    options = ["--measure", name, *(["--entropy-trains"] if entropy_trains else [])]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.logprob_memory", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def figures(rounds: int, entropy_trains: bool) -> list[Figure]:
    label = "entropy in the loss" if entropy_trains else "entropy reported"
    memory = [
        tuple(measured_apart(name, entropy_trains) for name in SIDES) for _ in range(MEMORY_ROUNDS)
    ]
    given, pairs = inputs(TOKENS), []
    for index in range(rounds + 1):
        order = list(SIDES) if index % 2 else list(SIDES)[::-1]
        found = {name: run(SIDES[name], given, entropy_trains)[0] for name in order}
        if index:  # the first round warms up
            pairs.append((found["plain"], found["chunked"]))
    results = {name: run(side, given, entropy_trains)[1] for name, side in SIDES.items()}
    gaps = [
        float((ours - theirs).norm() / theirs.norm())
        for ours, theirs in zip(results["chunked"], results["plain"], strict=True)
    ]
    share = statistics.median(ours / theirs for theirs, ours in memory)
    times = statistics.median(ours / theirs for theirs, ours in pairs)
    held = statistics.median(ours for _, ours in memory)
    return [
        Figure(
            f"{label}: extra memory, of the plain way's", share, "", 1 / 10, 1 / 15, "lower", memory
        ),
        Figure(f"{label}: time, of the plain way's", times, "", 1.2, 1.0, "lower", pairs),
        Figure(f"{label}: extra memory", held, "MiB", None, None, "lower", [m[1] for m in memory]),
        Figure(f"{label}: largest relative difference", max(gaps), "", 1e-6, None, "lower", gaps),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logprob_memory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", choices=list(SIDES), help="print one side's MiB and end")
    parser.add_argument("--entropy-trains", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.measure:
        print(measure_here(arguments.measure, arguments.entropy_trains))
        return
    found = [*figures(arguments.rounds, False), *figures(arguments.rounds, True)]
    write("logprob_memory", CLAIM, found, ["torch"], THREADS)


if __name__ == "__main__":
    main()
