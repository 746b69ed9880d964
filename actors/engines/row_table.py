"""What is known of every row under way, as columns of tensors: dense, in place, no row objects.

Owns tokens, log-probs, limits and sampling settings. Knows nothing of models, keys and values, or
of who asked. Shapes: B live rows, N new rows, C capacity in tokens, W window, S stop tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manta.actors.engines.draws import seed_tensor, uniform
from manta.actors.engines.sampler import SamplingColumns
from manta.envs.records import Sampling

_WINDOW = 32
_FIRST_CAPACITY = 64
# Columns of the integer table.
_LENGTH, _START, _LIMIT, _SEED, _TOP_K, _DRAWN = range(6)
# Columns of the float table.
_TEMPERATURE, _TOP_P = range(2)


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row about to start: its prefix (int64[L]), seed, budget and settings; its seed has drawn
    the last `drawn` tokens of the prefix."""

    prefix: Tensor
    seed: int
    budget: int
    sampling: Sampling
    drawn: int = 0


class RowTable:
    """Columns of up to `max_rows` rows; rows 0..num_rows-1 are live, `longest` is the length of
    the longest.

    Token i of a row, prefix included, stands in column i of the token table. Uniform numbers are
    drawn for a window of steps at once, since hashing them one step at a time costs as much as the
    rest of the bookkeeping.
    """

    def __init__(self, max_rows: int, context: int, device: torch.device) -> None:
        self.num_rows = 0
        self.longest = 0
        self._context = context
        self._device = device
        self._rows = torch.arange(max_rows, device=device)
        self._integers = torch.zeros(max_rows, 6, dtype=torch.int64, device=device)
        self._floats = torch.zeros(max_rows, 2, device=device)
        self._stops = torch.full((max_rows, 0), -1, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(max_rows, 0, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(max_rows, 0, device=device)
        self._uniforms = torch.zeros(max_rows, _WINDOW, dtype=torch.float64, device=device)
        self._step = 0
        self._samplings: list[Sampling] = []
        self._flags = (False, False, False)

    def clear(self) -> None:
        """Forgets every row."""
        self.num_rows = self.longest = 0
        self._samplings.clear()

    @property
    def length_B(self) -> Tensor:
        """int64[B]: tokens of each row, prefix included."""
        return self._integers[: self.num_rows, _LENGTH]

    @property
    def columns(self) -> SamplingColumns:
        """How the live rows sample."""
        floats, rows = self._floats, self.num_rows
        return SamplingColumns(
            floats[:rows, _TEMPERATURE],
            floats[:rows, _TOP_P],
            self._integers[:rows, _TOP_K],
            *self._flags,
        )

    def add(self, new: Sequence[NewRow]) -> None:
        """Appends rows behind the live ones."""
        begin, end = self.num_rows, self.num_rows + len(new)
        lengths = [len(row.prefix) for row in new]
        self.longest = max(self.longest, *lengths)
        self._widen(self.longest, max(len(row.sampling.stop_token_ids) for row in new))
        samplings = [row.sampling for row in new]
        integers = torch.tensor(
            [
                [length, length, length + row.budget, 0, _top_k(row.sampling), row.drawn]
                for length, row in zip(lengths, new, strict=True)
            ]
        )
        integers[:, _SEED] = seed_tensor(tuple(row.seed for row in new))
        self._integers[begin:end] = integers.to(self._device)
        self._floats[begin:end] = torch.tensor(
            [[s.temperature, 1.0 if s.temperature == 0.0 else s.top_p] for s in samplings]
        ).to(self._device)
        self._stops[begin:end] = -1
        for index, row in enumerate(new, start=begin):
            self._tokens[index, : len(row.prefix)] = row.prefix
            stops = row.sampling.stop_token_ids
            if stops:
                self._stops[index, : len(stops)] = torch.tensor(stops, device=self._device)
        self._samplings += samplings
        self.num_rows = end
        self._draw(begin, end)
        self._note_flags()

    def uniform_B(self) -> Tensor:
        """float64[B] for the token that each row samples next."""
        column = self._step % _WINDOW
        if column == 0:
            self._draw(0, self.num_rows)
        return self._uniforms[: self.num_rows, column]

    def append(self, tokens_B: Tensor, logprobs_B: Tensor) -> Tensor:
        """One sampled token per row; returns bool[B], True where the row is finished."""
        rows_B, length_B = self._rows[: self.num_rows], self.length_B
        self.longest += 1
        self._widen(self.longest, 0)
        self._tokens[rows_B, length_B] = tokens_B
        self._logprobs[rows_B, length_B] = logprobs_B
        length_B += 1
        self._step += 1
        is_done_B = length_B >= self._integers[: self.num_rows, _LIMIT]
        if self._stops.shape[1]:
            is_done_B |= self._is_stop_B(tokens_B)
        return is_done_B

    def so_far(self, row: int) -> tuple[Tensor, Tensor]:
        """A row's sampled tokens int64[T] and log-probs float32[T]; T may be 0."""
        length, start = self._integers[row, : _START + 1].tolist()
        return self._tokens[row, start:length], self._logprobs[row, start:length]

    def sampled(self, row: int) -> tuple[Tensor, Tensor, Literal["stop", "length"]]:
        """A row's tokens int64[T], log-probs float32[T] so far, and why it would end here."""
        tokens, logprobs = self.so_far(row)
        reason: Literal["stop", "length"] = "length"
        if tokens[-1].item() in self._samplings[row].stop_token_ids:
            reason = "stop"
        return tokens, logprobs, reason

    def num_sampled(self) -> list[int]:
        """Sampled tokens of each live row."""
        sampled: list[int] = (self.length_B - self._integers[: self.num_rows, _START]).tolist()
        return sampled

    def rows_so_far(self) -> list[Tensor]:
        """Prefix and sampled tokens of each live row, int64[L]."""
        return [self._tokens[row, :length] for row, length in enumerate(self.length_B.tolist())]

    def last_tokens(self) -> Tensor:
        """int64[B]: the newest token of each row."""
        return self._tokens[self._rows[: self.num_rows], self.length_B - 1]

    def drop(self, sources: Sequence[int], holes: Sequence[int], num_rows: int) -> None:
        """Moves rows `sources` into `holes` and keeps the first `num_rows`."""
        if holes:
            source_M, hole_M = torch.tensor(sources), torch.tensor(holes)
            for table in self._tables():
                table[hole_M] = table[source_M]
        for source, hole in zip(sources, holes, strict=True):
            self._samplings[hole] = self._samplings[source]
        del self._samplings[num_rows:]
        self.num_rows = num_rows
        self.longest = int(self.length_B.max()) if num_rows else 0
        self._note_flags()

    def _tables(self) -> tuple[Tensor, ...]:
        return (
            self._integers,
            self._floats,
            self._stops,
            self._tokens,
            self._logprobs,
            self._uniforms,
        )

    def _is_stop_B(self, tokens_B: Tensor) -> Tensor:
        return (self._stops[: self.num_rows] == tokens_B[:, None]).any(dim=1)

    def _draw(self, begin: int, end: int) -> None:
        """The window's uniform numbers of rows `begin:end`, aligned with the current step."""
        integers = self._integers[begin:end]
        index_N = integers[:, _LENGTH] - integers[:, _START] + integers[:, _DRAWN]
        offset_W = torch.arange(_WINDOW, device=self._device) - self._step % _WINDOW
        self._uniforms[begin:end] = uniform(
            integers[:, _SEED, None], index_N[:, None] + offset_W[None]
        )

    def _note_flags(self) -> None:
        kinds = set(self._samplings)
        self._flags = (
            any(kind.temperature not in (0.0, 1.0) for kind in kinds),
            any(kind.temperature > 0.0 and (kind.top_k > 0 or kind.top_p < 1.0) for kind in kinds),
            any(kind.temperature == 0.0 for kind in kinds),
        )

    def _widen(self, capacity: int, num_stops: int) -> None:
        old = self._tokens.shape[1]
        if capacity > old:
            new = max(old, _FIRST_CAPACITY)
            while new < capacity:
                new *= 2
            pad = (0, min(new, self._context) - old)
            self._tokens = torch.nn.functional.pad(self._tokens, pad)
            self._logprobs = torch.nn.functional.pad(self._logprobs, pad)
        missing = num_stops - self._stops.shape[1]
        if missing > 0:
            self._stops = torch.nn.functional.pad(self._stops, (0, missing), value=-1)


def _top_k(sampling: Sampling) -> int:
    return 0 if sampling.temperature == 0.0 else sampling.top_k
