"""Tokens per second of the embedded engine against transformers' own `generate`.

Same weights, same prompts, same lengths on both sides (ours by budgets, theirs by a stopping
criterion per row), 64 rows from 8 prompts, two torch threads. On uniform lengths the two do the
same forward passes; on long-tail lengths `generate` carries finished rows along to the end of the
longest. Runs interleave, the side that goes first alternates, and each ratio is that of one pair.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from benchmarks.report import Figure, write
from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.models.causal import build_model
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.envs.records import GenerateRequest, Int32, Sampling, WeightVersion

VOCAB = 512
CONTEXT = 512
PROMPTS = 8
SAMPLES = 8
PROMPT_TOKENS = 32
MODEL = ModelSpec(build=BuildSpec(layers=4, width=256, heads=4, mlp_width=704), context=CONTEXT)
CLAIM = "Embedded engine against transformers generate: tokens per second at pinned lengths"


class PinnedLengths(StoppingCriteria):  # type: ignore[misc]
    """Ends row i after `lengths[i]` new tokens."""

    def __init__(self, lengths: list[int]) -> None:
        self._ends = torch.tensor(lengths) + PROMPT_TOKENS
        # generate pads the rows that ended only where a criterion has this attribute
        self.eos_token_id = VOCAB - 1

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        return input_ids.shape[1] >= self._ends


@dataclass(frozen=True)
class Sides:
    """The two engines over one set of weights and prompts (int32[PROMPTS, PROMPT_TOKENS])."""

    engine: EmbeddedEngine
    peer: PreTrainedModel
    prompts: Int32

    def ours(self, lengths: list[int]) -> float:
        """Seconds for all rows; raises RuntimeError where a length is not as asked."""
        requests = [
            GenerateRequest(
                prompt,
                tuple(range(i * SAMPLES, (i + 1) * SAMPLES)),
                tuple(lengths[i * SAMPLES : (i + 1) * SAMPLES]),
                Sampling(),
            )
            for i, prompt in enumerate(self.prompts)
        ]
        begin = time.perf_counter()
        out = asyncio.run(self.engine.generate(requests))
        seconds = time.perf_counter() - begin
        self._check([len(c.token_ids) for group in out for c in group], lengths)
        return seconds

    def theirs(self, lengths: list[int]) -> float:
        """Seconds for all rows; raises RuntimeError where a length is not as asked."""
        rows = torch.from_numpy(self.prompts).long().repeat_interleave(SAMPLES, dim=0)
        begin = time.perf_counter()
        with torch.inference_mode():
            out = self.peer.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                top_k=0,
                max_new_tokens=max(lengths),
                eos_token_id=None,
                pad_token_id=VOCAB - 1,
                stopping_criteria=StoppingCriteriaList([PinnedLengths(lengths)]),
            )
        seconds = time.perf_counter() - begin
        if out.shape != (len(rows), PROMPT_TOKENS + max(lengths)):
            raise RuntimeError(f"generate returned {tuple(out.shape)}: the lengths are not pinned")
        for row, length in zip(out, lengths, strict=True):
            if not (row[PROMPT_TOKENS + length :] == VOCAB - 1).all():
                raise RuntimeError("generate sampled past a pinned length")
        return seconds

    @staticmethod
    def _check(found: list[int], wanted: list[int]) -> None:
        if found != wanted:
            raise RuntimeError(f"the engine made lengths {found}, asked for {wanted}")


def long_tail(seed: int) -> list[int]:
    """Lognormal lengths, median 16, sigma 1, from 1 to 256 tokens."""
    draws = np.random.default_rng(seed).lognormal(np.log(16.0), 1.0, PROMPTS * SAMPLES)
    return [int(length) for length in np.clip(np.rint(draws), 1, 256)]


def compare(
    sides: Sides, name: str, lengths: list[list[int]], bar: float, aim: float
) -> list[Figure]:
    """One warm-up and one interleaved pair per entry of `lengths`."""
    sides.ours(lengths[0])
    sides.theirs(lengths[0])
    pairs: list[tuple[float, float]] = []
    for index, wanted in enumerate(lengths):
        if index % 2:
            theirs = sides.theirs(wanted)
            ours = sides.ours(wanted)
        else:
            ours = sides.ours(wanted)
            theirs = sides.theirs(wanted)
        pairs.append((sum(wanted) / ours, sum(wanted) / theirs))
    ratios = [ours / theirs for ours, theirs in pairs]
    unit = "tokens/s"
    mine, peers = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
    return [
        Figure(f"{name}: embedded", float(np.median(mine)), unit, None, None, "higher", mine),
        Figure(f"{name}: generate", float(np.median(peers)), unit, None, None, "higher", peers),
        Figure(f"{name}: ratio", float(np.median(ratios)), "x", bar, aim, "higher", pairs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--pairs", type=int, default=9, help="interleaved pairs per distribution")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of either side")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = EmbeddedEngine(
        build_model(MODEL, VOCAB, 0),
        CONTEXT,
        PROMPTS * SAMPLES,
        arguments.threads,
        False,
        WeightVersion(0, 0),
    )
    random = np.random.default_rng(0)
    prompts = random.integers(0, VOCAB - 1, (PROMPTS, PROMPT_TOKENS)).astype(np.int32)
    sides = Sides(engine, build_model(MODEL, VOCAB, 0), prompts)
    uniform = [[64] * (PROMPTS * SAMPLES)] * arguments.pairs
    tails = [long_tail(seed) for seed in range(arguments.pairs)]
    figures = [
        *compare(sides, "uniform, 64 tokens", uniform, bar=1.0, aim=1.5),
        *compare(sides, "long tail, median 16, cap 256", tails, bar=2.0, aim=3.0),
    ]
    engine.close()
    write("engine", CLAIM, figures, ["torch", "transformers", "numpy"], arguments.threads)


if __name__ == "__main__":
    main()
