"""Evaluating a causal language model on rows: statistics of trained tokens, flat, nothing else.

Owns which hidden states are needed and putting results back into row order. How rows lie in the
input is in `manta.actors.models.layout`; full distributions stay inside
`manta.actors.models.vocabulary`; what residents answer is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manta.actors.backends.protocol import Want
from manta.actors.micro_batches import micro_batches, padded_batches
from manta.actors.models.layout import Layout, in_one_sequence, side_by_side
from manta.actors.models.packed_attention import is_packable, use_packed_attention
from manta.actors.models.resident import ResidentModule
from manta.actors.models.vocabulary import STATISTICS, token_statistics
from manta.actors.rows import Row
from manta.envs.records import Float32, Int32

Evaluate: TypeAlias = Callable[[Sequence[Row], Sequence[Want], float], dict[str, Tensor]]
"""As `evaluate` of one model or several: rows, wants, temperature."""

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
    """What each want is (see `Want`) over the trained tokens of `rows`, in row order, with
    gradients where it has any. Wants that are not of the vocabulary are answered by `residents`;
    the policy is not computed where no want depends on it.

    Raises ValueError as `hidden_states` does, for a want that nobody answers, and where a row does
    not say what is likely.
    """
    states = cache(lambda: hidden_states(model, rows))
    found: dict[str, Tensor] = {}
    for resident in residents:
        found |= resident.statistics(rows, wants, temperature, lambda: states()[0])
    of_words = [want for want in wants if str(want) in STATISTICS]
    missing = sorted({str(want) for want in wants} - found.keys() - STATISTICS)
    if missing:
        raise ValueError(f"nothing in the learner's graph answers {missing}: add its resident")
    if of_words:
        hidden_TD, targets_T = states()
        head = head_of(model)
        likely_TK = _likely(rows).to(targets_T.device) if "likeliest" in wants else None
        found |= token_statistics(
            hidden_TD,
            head.weight,
            head.bias,
            targets_T,
            temperature,
            of_words,
            likely_TK=likely_TK,
        )
    return {str(want): found[str(want)] for want in wants}


def hidden_states(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """For each trained token of `rows`, in row order: the state [T, D] of `model`, with or without
    a head, that the token is predicted from, and the token's id, int64[T].

    Rows lie one behind the other in one sequence, without padding, where the model's attention can
    keep them apart (`is_packable`). Other models get them in batches of similar length, padded on
    the right. Tokens that nothing trained depends on are not computed.

    Raises ValueError where the first token of a row is trained (nothing predicts it), and for
    models that transform logits after the head.
    """
    _check(model, rows)
    if is_packable(model):
        use_packed_attention(model)
        layout = in_one_sequence(rows)
        hidden_TD, targets_T = _hidden(model, layout), layout.targets_T
    else:
        hidden_TD, targets_T = _padded(model, rows)
    return hidden_TD, targets_T.to(hidden_TD.device)


def evaluate_in_batches(
    model: nn.Module,
    rows: Sequence[Row],
    wants: Sequence[Want],
    temperature: float,
    tokens_per_micro_batch: int,
    residents: Sequence[ResidentModule] = (),
) -> dict[str, Tensor]:
    """As `evaluate`, in micro-batches and without gradients; results stay in row order."""
    whole = partial(evaluate, model, residents=residents)
    return in_batches(whole, rows, wants, temperature, tokens_per_micro_batch)


def in_batches(
    whole: Evaluate,
    rows: Sequence[Row],
    wants: Sequence[Want],
    temperature: float,
    tokens_per_micro_batch: int,
) -> dict[str, Tensor]:
    """What `whole` answers of `rows`, micro-batch after micro-batch; results stay in row order."""
    with torch.no_grad():
        batches = micro_batches(rows, tokens_per_micro_batch) or [[]]
        found = [whole(batch, wants, temperature) for batch in batches]
        order_T = row_order([row for batch in batches for row in batch], rows)
        return {
            name: torch.cat([part[name] for part in found])[order_T.to(found[0][name].device)]
            for name in found[0]
        }


def token_logprobs(
    model: nn.Module, rows: Sequence[Int32], tokens_per_micro_batch: int = 4096
) -> list[Float32]:
    """float32[L] per row: log-prob (temperature 1) of each token after those before it; the first
    token, which has no predecessor, gets 0."""
    whole = whole_rows(rows)
    found = evaluate_in_batches(model, whole, ("logprob",), 1.0, tokens_per_micro_batch)
    return by_row(whole, found["logprob"])


def whole_rows(rows: Sequence[Int32]) -> list[Row]:
    """Rows of token ids of which all but the first are trained."""
    return [Row(i, ids, np.arange(len(ids)) > 0, None, None, {}) for i, ids in enumerate(rows)]


def by_row(rows: Sequence[Row], values_T: Tensor) -> list[Float32]:
    """float32[L] for each of `rows`: `values_T` of their trained tokens at these, 0 elsewhere."""
    parts = torch.split(values_T.cpu(), [row.num_tokens for row in rows])
    found = []
    for row, part in zip(rows, parts, strict=True):
        values = np.zeros(len(row.token_ids), np.float32)
        values[row.loss_mask] = part.numpy()
        found.append(values)
    return found


def _likely(rows: Sequence[Row]) -> Tensor:
    """int64[T, k]: the words that the rows' reference found likely."""
    parts = []
    for row in rows:
        if row.num_tokens and row.likeliest is None:
            raise ValueError(
                f"row {row.index}: nothing says which words are likely where its tokens stand: "
                "have the reference workers tell"
            )
        if row.num_tokens and row.likeliest is not None:
            parts.append(row.likeliest.ids)
    ids = np.concatenate(parts) if parts else np.zeros((0, 0), np.int32)
    return torch.from_numpy(ids.astype(np.int64))


def head_of(model: nn.Module) -> nn.Linear:
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


def _hidden(model: nn.Module, layout: Layout) -> Tensor:
    """float[T, D]: the states that predict the trained tokens."""
    some = next(model.parameters())
    device = some.device
    body = cast(nn.Module, model.base_model)
    if not len(layout.targets_T):
        width = cast(PreTrainedModel, model).config.hidden_size
        return some.new_zeros(0, width)
    if layout.documents is None:
        output = body(input_ids=layout.tokens.to(device), use_cache=False)
    else:
        output = body(
            input_ids=layout.tokens.to(device),
            position_ids=layout.documents.positions()[None].to(device),
            # Four dimensions: taken for a finished mask, so that none of [N, N] is made
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            documents=layout.documents,
            use_cache=False,
        )
    states_XD = cast(_HiddenStates, output).last_hidden_state.flatten(0, 1)
    return states_XD.index_select(0, layout.positions_T.to(device))


def _padded(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The states of all rows' trained tokens and their ids, in row order, from padded batches."""
    batches = padded_batches(rows) or [[]]
    layouts = [side_by_side(batch) for batch in batches]
    order_T = row_order([row for batch in batches for row in batch], rows)
    hidden_TD = torch.cat([_hidden(model, layout) for layout in layouts])
    targets_T = torch.cat([layout.targets_T for layout in layouts])
    return hidden_TD[order_T.to(hidden_TD.device)], targets_T[order_T]


def row_order(evaluated: Sequence[Row], wanted: Sequence[Row]) -> Tensor:
    """int64[T]: where each trained token of `wanted` is among those of `evaluated`, the same rows
    in another order."""
    ends = np.cumsum([0, *(row.num_tokens for row in evaluated)])
    start = {row.index: ends[i] for i, row in enumerate(evaluated)}
    places = [start[row.index] + np.arange(row.num_tokens) for row in wanted]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *places]))
