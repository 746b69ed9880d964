"""Evaluating a causal language model on rows: statistics of trained tokens, flat, nothing else.

Owns padding, which hidden states are needed, and putting results back into row order. Full
distributions stay inside `manta.actors.models.vocabulary`; what residents answer is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from manta.actors.backends.protocol import Want
from manta.actors.micro_batches import micro_batches
from manta.actors.models.resident import ResidentModule
from manta.actors.models.vocabulary import token_statistics
from manta.actors.rows import Row
from manta.envs.records import Float32, Int32

_UNSUPPORTED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class _HiddenStates(Protocol):
    last_hidden_state: Tensor


def evaluate(
    model: nn.Module,
    rows: Sequence[Row],
    wants: Sequence[Want],
    temperature: float,
    residents: Sequence[ResidentModule] = (),
) -> dict[str, Tensor]:
    """float32[T] per want over the trained tokens of `rows`, in row order, with gradients.

    `logprob` is log softmax(logits / temperature) at the token, `entropy` that distribution's
    entropy in nats; other wants are answered by `residents`. Rows are padded on the right, so a
    causal model needs no attention mask: no token sees the padding after it. Tokens that nothing
    trained depends on are not computed, and neither is the policy where no want depends on it.

    Raises ValueError where the first token of a row is trained (nothing predicts it), for models
    that transform logits after the head, and for a want that nobody answers.
    """
    if not any(row.num_tokens for row in rows):
        _check(model, rows)
        device = next(model.parameters()).device
        return {want: torch.zeros(0, device=device) for want in wants}
    states = cache(lambda: hidden_states(model, rows))
    found: dict[str, Tensor] = {}
    if "logprob" in wants or "entropy" in wants:
        hidden_TD, targets_T = states()
        head = _head(model)
        logprob_T, entropy_T = token_statistics(
            hidden_TD, head.weight, head.bias, targets_T, temperature, "entropy" in wants
        )
        found = {"logprob": logprob_T, "entropy": entropy_T}
    for resident in residents:
        found |= resident.statistics(rows, wants, lambda: states()[0])
    missing = sorted(set(wants) - found.keys())
    if missing:
        raise ValueError(f"nothing in the learner's graph answers {missing}: add its resident")
    return {want: found[want] for want in wants}


def hidden_states(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """For each trained token of `rows`, in row order: the state [T, D] of `model`, with or without
    a head, that the token is predicted from, and the token's id, int64[T].

    Raises ValueError as `evaluate` does.
    """
    _check(model, rows)
    device = next(model.parameters()).device
    tokens_BL, positions_T, targets_T = _pad(rows)
    body = cast(nn.Module, model.base_model)
    states = cast(_HiddenStates, body(input_ids=tokens_BL.to(device), use_cache=False))
    hidden_TD = states.last_hidden_state.flatten(0, 1).index_select(0, positions_T.to(device))
    return hidden_TD, targets_T.to(device)


def evaluate_in_batches(
    model: nn.Module,
    rows: Sequence[Row],
    wants: Sequence[Want],
    temperature: float,
    tokens_per_micro_batch: int,
    residents: Sequence[ResidentModule] = (),
) -> dict[str, Tensor]:
    """As `evaluate`, in micro-batches and without gradients; results stay in row order."""
    counts = [row.num_tokens for row in rows]
    starts = {row.index: sum(counts[:i]) for i, row in enumerate(rows)}
    device = next(model.parameters()).device
    results: dict[str, Tensor] = {want: torch.zeros(sum(counts), device=device) for want in wants}
    with torch.no_grad():
        for batch in micro_batches(rows, tokens_per_micro_batch):
            found = evaluate(model, batch, wants, temperature, residents)
            sizes = [row.num_tokens for row in batch]
            for want in wants:
                for row, part in zip(batch, torch.split(found[want], sizes), strict=True):
                    start = starts[row.index]
                    results[want][start : start + len(part)] = part
    return results


def token_logprobs(
    model: nn.Module, rows: Sequence[Int32], tokens_per_micro_batch: int = 4096
) -> list[Float32]:
    """float32[L] per row: log-prob (temperature 1) of each token after those before it; the first
    token, which has no predecessor, gets 0."""
    whole = [Row(i, ids, np.arange(len(ids)) > 0, None, None, {}) for i, ids in enumerate(rows)]
    found = evaluate_in_batches(model, whole, ("logprob",), 1.0, tokens_per_micro_batch)["logprob"]
    parts = torch.split(found.cpu(), [row.num_tokens for row in whole])
    return [np.concatenate([np.zeros(1, np.float32), part.numpy()]) for part in parts]


def _head(model: nn.Module) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())  # type: ignore[operator]


def _check(model: nn.Module, rows: Sequence[Row]) -> None:
    for row in rows:
        if len(row.loss_mask) and row.loss_mask[0]:
            raise ValueError(
                f"row {row.index}: its first token is marked as trained, but nothing comes before "
                "it that could predict it; start every trajectory with a prompt token"
            )
    for name in _UNSUPPORTED:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"the model's config sets {name}, a transformation of logits after the head that "
                "this learner does not apply: choose a model without it"
            )


def _pad(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """tokens int64[B, L] up to the last token that predicts a trained one; for each trained token
    the flat position int64[T] that predicts it, and its id int64[T]."""
    trained = [torch.from_numpy(row.loss_mask.nonzero()[0]) for row in rows]
    width = max((int(places[-1]) for places in trained if len(places)), default=0)
    tokens_BL = torch.zeros(len(rows), width, dtype=torch.int64)
    positions, targets = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for i, (row, places) in enumerate(zip(rows, trained, strict=True)):
        token_ids = torch.from_numpy(row.token_ids.astype("int64"))
        length = min(width, len(token_ids))
        tokens_BL[i, :length] = token_ids[:length]
        positions.append(i * width + places - 1)
        targets.append(token_ids[places])
    return tokens_BL, torch.cat(positions), torch.cat(targets)
