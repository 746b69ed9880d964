"""The rows under way: started from a prefix, one token a step, gone the moment they finish.

Owns which row sits where. A step samples from the logits at hand, drops what finished, and runs the
rest through the model for the next logits, so no finished row is ever computed. Not thread-safe:
one thread runs it. Shapes: B live rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from manta.actors.engines.causal_forward import PREFILL_CELLS, CausalForward
from manta.actors.engines.kv_slots import KeyValueSlots
from manta.actors.engines.padding import pad, padded_batches
from manta.actors.engines.pending import LiveSample, Pending, Prefix
from manta.actors.engines.row_table import RowTable
from manta.actors.engines.sampler import sample
from manta.envs.records import Completion, VersionSpan, WeightVersion


class DecodeBatch:
    """Up to `max_rows` rows; a leaving row's place is taken by the last one, so the batch stays
    dense and a departure costs the move of one row."""

    def __init__(self, forward: CausalForward, max_rows: int, context: int) -> None:
        self._forward = forward
        self._table = RowTable(max_rows, context, forward.device)
        self._slots = KeyValueSlots(max_rows, context)
        self._samples: list[LiveSample] = []
        self._logits_BV: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return len(self._samples)

    def clear(self) -> None:
        """Forgets every row and gives the memory back."""
        self._table.clear()
        self._slots.clear()
        self._samples = []
        self._logits_BV = None

    @property
    def kv_bytes(self) -> int:
        return self._slots.num_bytes

    def forget_kv(self) -> None:
        """Gives the memory of keys and values back; the rows stay, and want `renew` before they go
        on."""
        self._slots.clear()
        self._logits_BV = None

    def pendings(self) -> set[Pending]:
        """The requests that have a row here."""
        return {live.pending for live in self._samples}

    def start(self, chosen: Sequence[tuple[Pending, int]], version: WeightVersion) -> None:
        """Starts the next `count` samples of each request, whose prefixes have been run."""
        prefixes: list[Prefix] = []
        added = []
        for pending, count in chosen:
            assert pending.prefix is not None
            prefixes += [pending.prefix] * count
            added += pending.start(count)
        self._store(prefixes)
        self._table.add([row for row, _ in added])
        for _, live in added:
            live.note_version(VersionSpan(0, version))
            self._samples.append(live)
        fresh_NV = torch.stack([prefix.logits for prefix in prefixes])
        kept_BV = self._logits_BV
        self._logits_BV = fresh_NV if kept_BV is None else torch.cat([kept_BV, fresh_NV])

    def _store(self, prefixes: Sequence[Prefix]) -> None:
        """Copies keys and values of consecutive `prefixes` behind the live rows."""
        begin, start = 0, self.num_rows
        while begin < len(prefixes):
            prefilled = prefixes[begin].prefilled
            end = begin
            while end < len(prefixes) and prefixes[end].prefilled is prefilled:
                end += 1
            source_R = torch.tensor([prefix.index for prefix in prefixes[begin:end]])
            self._slots.store(start + begin, prefilled.keys, prefilled.values, source_R)
            begin = end

    def step(self) -> None:
        """One token for every row; finished rows report to their request and leave."""
        assert self._logits_BV is not None
        table = self._table
        tokens_B, logprobs_B = sample(self._logits_BV, table.columns, table.uniform_B())
        finished = table.append(tokens_B, logprobs_B).nonzero()[:, 0].tolist()
        completions = [(self._samples[row], self._completion(row)) for row in finished]
        if finished:
            self._drop(finished)
        # Before the model runs: should it fail, what is finished has been handed over
        for live, completion in completions:
            live.pending.finish(live.sample, completion)
        self._close({live.pending for live, _ in completions if live.pending.is_done})
        self._logits_BV = self._next_logits() if self.num_rows else None

    def _close(self, done: set[Pending]) -> None:
        """Requests that want no more samples; the rows that they still have leave as they stand."""
        cut = {pending for pending in done if pending.request.enough is not None}
        live = self.so_far(cut) if cut else {}
        rows = [row for row, sample in enumerate(self._samples) if sample.pending in cut]
        if rows:
            self._drop(rows)
        for pending in done:
            pending.close(live.get(pending, {}))

    def abandon(self, pendings: set[Pending]) -> None:
        """Drops the rows of `pendings` without a completion."""
        rows = [row for row, live in enumerate(self._samples) if live.pending in pendings]
        if not rows:
            return
        order = self._drop(rows)
        if self._logits_BV is not None:
            self._logits_BV = self._logits_BV[order] if order else None

    def so_far(self, pendings: set[Pending]) -> dict[Pending, dict[int, Completion]]:
        """The samples of `pendings` that are under way, by request and sample."""
        found: dict[Pending, dict[int, Completion]] = {pending: {} for pending in pendings}
        for row, live in enumerate(self._samples):
            if live.pending in pendings:
                tokens, logprobs = self._table.so_far(row)
                spans = tuple(span for span in live.spans if span.start < len(tokens))
                found[live.pending][live.sample] = Completion(
                    tokens.cpu().numpy().astype(np.int32),
                    logprobs.cpu().numpy().astype(np.float32),
                    spans,
                    "abort",
                )
        return found

    def renew(self, version: WeightVersion, keeps_kv: bool) -> None:
        """Logits of every row under the weights that the model has now, called `version`; unless
        `keeps_kv`, of keys and values that are computed anew."""
        for live, start in zip(self._samples, self._table.num_sampled(), strict=True):
            live.note_version(VersionSpan(start, version))
        if not keeps_kv:
            self._recompute()
        self._logits_BV = self._next_logits() if self.num_rows else None

    def _recompute(self) -> None:
        rows = self._table.rows_so_far()
        for batch in padded_batches([len(row) for row in rows], PREFILL_CELLS):
            prefilled, _ = self._forward.fill(pad([rows[index] for index in batch]))
            for source, row in enumerate(batch):
                self._slots.store(row, prefilled.keys, prefilled.values, torch.tensor([source]))

    def _next_logits(self) -> Tensor:
        table = self._table
        self._slots.reserve(self.num_rows, table.longest)
        return self._forward.decode(table.last_tokens(), table.length_B, table.longest, self._slots)

    def _drop(self, rows: Sequence[int]) -> list[int]:
        """Returns where each remaining row stood before."""
        num_rows = self.num_rows - len(rows)
        gone = set(rows)
        holes = [row for row in rows if row < num_rows]
        sources = [row for row in range(num_rows, self.num_rows) if row not in gone]
        order = list(range(num_rows))
        for source, hole in zip(sources, holes, strict=True):
            order[hole] = source
        if holes:
            self._slots.move(sources, holes, self._table.longest)
        self._table.drop(sources, holes, num_rows)
        self._samples = [self._samples[row] for row in order]
        return order

    def _completion(self, row: int) -> Completion:
        """Raises FloatingPointError where the model's logits were not finite."""
        tokens, logprobs, reason = self._table.sampled(row)
        live = self._samples[row]
        logprobs_T = logprobs.cpu().numpy().astype(np.float32)
        if not np.isfinite(logprobs_T).all():
            raise FloatingPointError(
                f"weights {live.spans[-1].version} give log-probs that are not finite: look at the "
                "learner's loss and gradient norm of that step"
            )
        return Completion(
            tokens.cpu().numpy().astype(np.int32), logprobs_T, tuple(live.spans), reason
        )
