"""The three ways an engine runs a causal language model: prefill, decode, score.

Owns the calls into transformers and what they assume of a model. Keeps no state between calls.
Shapes: P prefixes, B rows, L tokens, V vocabulary, H key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from manta.actors.engines.attention import use_grouped_attention
from manta.actors.engines.kv_slots import KeyValueSlots
from manta.actors.engines.padding import pad, padded_batches

PREFILL_CELLS = 8192
"""Padded tokens of one prefill: enough to fill a product, and a bounded wait for other rows."""

_SCORED_CELLS = 1 << 25
"""Float32 logits that scoring holds at once (128 MiB)."""


_SMALL_WORK = 1 << 26
"""Rows times parameters up to which a decoding step runs on one thread. Several gain a fifth there
at most, for twice the processor time, and on shared cores they wait whole time slices for each
other."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Keys and values [P, H, L, D] per layer; what lies past a prefix's end means nothing."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class CausalForward:
    """`model`: a causal language model whose layers all attend over all tokens; `threads` are those
    of torch. It is run by one thread of the process, whose setting it changes.

    Raises ValueError for a model with a sliding window shorter than `context`.
    """

    def __init__(self, model: PreTrainedModel, context: int, threads: int) -> None:
        check_attention(model, context)
        use_grouped_attention(model)
        self.model = model.eval()
        self._threads = threads
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    def drop_weights(self) -> None:
        """Gives the weights' memory back. Nothing but `make_room` may be called then."""
        self._shapes = [parameter.shape for parameter in self.model.parameters()]
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)

    def make_room(self) -> None:
        """Takes memory for the weights again; they are to be loaded."""
        for parameter, shape in zip(self.model.parameters(), self._shapes, strict=True):
            parameter.data = parameter.data.new_empty(shape)

    def prefill(self, prefixes: Sequence[Tensor]) -> tuple[Prefilled, Tensor]:
        """Runs `prefixes` (int64[L] each) as one batch; logits [P, V] after each one's end."""
        ends_P = torch.tensor([len(prefix) - 1 for prefix in prefixes], device=self.device)
        kept_K, which_P = torch.unique(ends_P, return_inverse=True)
        prefilled, logits_PKV = self.fill(pad(prefixes), kept_K)
        return prefilled, logits_PKV[torch.arange(len(prefixes)), which_P]

    def fill(self, tokens_PL: Tensor, logits_at: Tensor | int = 1) -> tuple[Prefilled, Tensor]:
        """Keys and values of right-padded `tokens_PL`; logits at the columns `logits_at`.

        No mask: padding follows what counts, so causal attention never sees it.
        """
        cache = DynamicCache()
        logits = self._logits(tokens_PL, cache, logits_at)
        return Prefilled([c.keys for c in cache.layers], [c.values for c in cache.layers]), logits

    def decode(
        self, tokens_B: Tensor, length_B: Tensor, longest: int, slots: KeyValueSlots
    ) -> Tensor:
        """Logits [B, V] after `tokens_B`, each the last of the `length_B` tokens of its row;
        `longest` is the greatest length."""
        position_B = length_B - 1
        slots.aim(position_B, longest)
        is_seen_BL = torch.arange(longest, device=self.device) < length_B[:, None]
        mask_BL = torch.where(is_seen_BL, 0.0, -torch.inf).to(self.dtype)
        self._run_on(1 if len(tokens_B) * self._num_parameters <= _SMALL_WORK else self._threads)
        output = self.model(
            input_ids=tokens_B[:, None],
            attention_mask=mask_BL[:, None, None],
            position_ids=position_B[:, None],
            past_key_values=slots,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, 0]
        return logits

    def logprobs(self, rows: Sequence[Tensor], is_alone: bool) -> list[Tensor]:
        """float32[L] per row (int64[L]): log-prob of each token after those before it, 0 first.

        `is_alone` runs every row as a batch of its own.
        """
        result = [torch.zeros(len(row)) for row in rows]
        lengths = [len(row) for row in rows]
        for batch in padded_batches(lengths, 0 if is_alone else PREFILL_CELLS):
            scored_RL = self._score(pad([rows[index] for index in batch]))
            for index, scored_L in zip(batch, scored_RL, strict=True):
                result[index][1:] = scored_L[: lengths[index] - 1]
        return result

    def _score(self, tokens_RL: Tensor) -> Tensor:
        """float32[R, L-1]; in segments of columns, so that the logits fit in memory."""
        tokens_RL = tokens_RL.to(self.device)
        rows, length = tokens_RL.shape
        scored = torch.zeros(rows, length - 1)
        cache, begin = DynamicCache(), 0
        step = max(1, _SCORED_CELLS // (rows * self.model.config.vocab_size))
        while begin < length - 1:
            end = min(begin + step, length - 1)
            logits = self._logits(tokens_RL[:, begin:end], cache, 0).float()
            target = tokens_RL[:, begin + 1 : end + 1, None]
            chosen = logits.gather(-1, target)[..., 0] - logits.logsumexp(dim=-1)
            scored[:, begin:end] = chosen.cpu()
            begin = end
        return scored

    def _logits(self, tokens: Tensor, cache: DynamicCache, logits_at: Tensor | int) -> Tensor:
        self._run_on(self._threads)
        output = self.model(
            input_ids=tokens.to(self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_at,
        )
        logits: Tensor = output.logits
        return logits

    def _run_on(self, threads: int) -> None:
        """Sets torch's threads where they differ, and leaves them so for what follows: a change
        makes oneDNN forget its kernels, and what samples between two small steps is small too."""
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def check_attention(model: PreTrainedModel, context: int) -> None:
    """Raises ValueError where a layer of `model` does not attend over all of `context` tokens."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds or (not kinds and window is not None)
    if kinds - {"full_attention", "sliding_attention"} or (slides and (window or 0) < context):
        raise ValueError(
            f"the embedded engine wants attention over all {context} tokens in every layer, and "
            f"{config.model_type!r} has layers {sorted(kinds)} with window {window}: choose "
            "another model or engine, or a context within the window"
        )
