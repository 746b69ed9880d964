"""The flat tensors of one rank's rows in one step, and token batches cut from them.

Owns the way from rows to what losses see. It evaluates no model and steps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from manta.actors.rows import Row
from manta.algorithms.aggregate import Denominators
from manta.algorithms.catalogue import LOSS_KINDS
from manta.algorithms.flatten import flatten
from manta.algorithms.kl_control import KlControl
from manta.algorithms.mismatch import MismatchTally
from manta.algorithms.rank_sums import AllReduce
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.step_tally import StepTally
from manta.algorithms.token_choice import tickets
from manta.algorithms.token_stage import token_stage
from manta.algorithms.tokens import TokenBatch
from manta.algorithms.turns import Places
from manta.algorithms.values import value_figures
from manta.envs.records import Bool, Float32


class StepTokens:
    """Advantages and returns of `rows` after the token stage, beside log-probs and values, by row.

    `proximal_T`, `value_T` and `vocabulary_T` float32[T] are over the rows' trained tokens in row
    order, of the policy and the critic before the step's first update, or None; so is `reward_T`,
    what tokens are rewarded with beside their rows. Construction
    takes part in the token stage's sums over ranks, so every rank constructs one, with or without
    rows; `names` are the plan's coefficient columns, `places` where `rows` stand in it. What
    is drawn at random follows from `seed`, `step` and the rows' places in the plan.
    """

    def __init__(
        self,
        settings: AlgorithmSettings,
        names: Sequence[str],
        rows: Sequence[Row],
        proximal_T: Tensor | None,
        all_reduce: AllReduce,
        value_T: Tensor | None = None,
        vocabulary_T: Tensor | None = None,
        seed: int = 0,
        step: int = 0,
        places: Places | None = None,
        reward_T: Tensor | None = None,
    ) -> None:
        self._settings = settings
        self._names = tuple(names)
        self._rows = tuple(rows)
        starts = np.cumsum([0, *(row.num_tokens for row in rows)]).tolist()
        self._places = {
            row.index: slice(start, end)
            for row, start, end in zip(rows, starts[:-1], starts[1:], strict=True)
        }
        behaviour = [row.behaviour_logprobs for row in rows]
        if LOSS_KINDS[settings.loss].ratio is None:
            behaviour = _among_sampled(behaviour, rows)
        self._behaviour_T = _flat(behaviour, rows)
        # The reference does not look at given rows, and every rank is to know of it as much
        has_reference = settings.companion != "given"
        reference = [row.reference_logprobs if has_reference else None for row in rows]
        self._reference_T = _flat(reference, rows)
        self._teacher_TK, self._teacher_weight_T = _taught(settings, rows)
        self._same_version_T = _flat([row.same_version for row in rows], rows, np.bool_)
        self._proximal_T = None if proximal_T is None else proximal_T.detach().cpu()
        self._value_T = None if value_T is None else value_T.detach().cpu()
        self._vocabulary_T = None if vocabulary_T is None else vocabulary_T.detach().cpu()
        batch = flatten(
            settings,
            self._num_tokens(rows),
            self._coefficients(rows),
            Denominators(1.0, 1.0),
            self._behaviour_T,
            self._proximal_T,
            self._reference_T,
            value_T=self._value_T,
        )
        if reward_T is None and _pays_within(rows):
            reward_T = _joined([row.rewards_T() for row in rows])
        batch = replace(batch, reward_T=reward_T)
        staged = self._staged(batch, all_reduce, seed, step, places)
        self._advantage_T, self._return_T = staged.advantage_T, staged.return_T
        self._selected_T = staged.selected_T
        self._counts_T = staged.mean_T != 0

    def _staged(
        self, batch: TokenBatch, all_reduce: AllReduce, seed: int, step: int, places: Places | None
    ) -> TokenBatch:
        """`batch`, of all rows, after the token stage."""
        rows, drawn_T = self._rows, None
        if self._settings.reads_turns:
            batch = replace(batch, turn_T=_joined([row.turns_T() for row in rows], np.int64))
        if self._settings.chooses_tokens:
            index_R = torch.tensor([row.index for row in rows], dtype=torch.int64)
            drawn_T = tickets(seed, step, index_R, self._num_tokens(rows))
        return token_stage(self._settings, batch, all_reduce, drawn_T, places)

    def batch(
        self,
        rows: Sequence[Row],
        update: Denominators,
        proximal_T: Tensor | None = None,
        vocabulary_T: Tensor | None = None,
    ) -> TokenBatch:
        """The batch of `rows` (any of those given, in any order), part of an update with these
        denominators. `proximal_T` and `vocabulary_T` stand in where none were given for the step.
        """
        if self._proximal_T is not None:
            proximal_T = self._cut(self._proximal_T, rows)
            vocabulary_T = self._cut(self._vocabulary_T, rows)
        return flatten(
            self._settings,
            self._num_tokens(rows),
            self._coefficients(rows),
            update,
            self._cut(self._behaviour_T, rows),
            proximal_T,
            self._cut(self._reference_T, rows),
            self._cut(self._advantage_T, rows),
            self._cut(self._same_version_T, rows),
            self._cut(self._value_T, rows),
            self._cut(self._return_T, rows),
            vocabulary_T,
            self._cut(self._selected_T, rows),
            self._cut(self._teacher_TK, rows),
            self._cut(self._teacher_weight_T, rows),
        )

    def tally(self, tally: MismatchTally) -> bool:
        """Counts all rows in `tally` where the step's log-probs were recomputed; whether it did."""
        if self._proximal_T is None:
            return False
        tally.add(self.batch(self._rows, Denominators(1.0, 1.0)), self._proximal_T)
        return True

    def follow_kl(
        self, control: KlControl, all_reduce: AllReduce, is_policy_frozen: bool
    ) -> dict[str, float]:
        """Moves the KL coefficient by all rows' tokens, where it follows a target."""
        batch = self.batch(self._rows, Denominators(1.0, 1.0))
        return control.follow(batch, all_reduce, is_policy_frozen)

    def tally_advantages(self, tally: StepTally) -> None:
        """Counts the advantages of all rows' tokens in `tally`."""
        tally.add_advantages(self._advantage_T, self._counts_T)

    def value_figures(self, all_reduce: AllReduce) -> dict[str, float]:
        """How the critic did on the step's tokens, before its first update; nothing without one."""
        if self._value_T is None or self._return_T is None:
            return {}
        batch = self.batch(self._rows, Denominators(1.0, 1.0))
        figures = value_figures(self._value_T, self._return_T, batch.mean_T, all_reduce)
        return {f"critic/{name}": value for name, value in figures.items()}

    def _cut(self, values_T: Tensor | None, rows: Sequence[Row]) -> Tensor | None:
        if values_T is None:
            return None
        return torch.cat([values_T[:0], *(values_T[self._places[row.index]] for row in rows)])

    def _num_tokens(self, rows: Sequence[Row]) -> Tensor:
        return torch.tensor([row.num_tokens for row in rows], dtype=torch.int64)

    def _coefficients(self, rows: Sequence[Row]) -> Mapping[str, Tensor]:
        return {
            name: torch.tensor([row.coefficients[name] for row in rows], dtype=torch.float32)
            for name in self._names
        }


def _pays_within(rows: Sequence[Row]) -> bool:
    return any(row.token_rewards is not None for row in rows)


def _among_sampled(columns: Sequence[Float32 | None], rows: Sequence[Row]) -> list[Float32 | None]:
    """NaN for rows that nobody sampled, where others were; a ratio to such a row has no meaning."""
    if all(column is None for column in columns):
        return list(columns)
    return [
        np.full(len(row.token_ids), np.nan, np.float32) if column is None else column
        for column, row in zip(columns, rows, strict=True)
    ]


def _taught(
    settings: AlgorithmSettings, rows: Sequence[Row]
) -> tuple[Tensor | None, Tensor | None]:
    """`TokenBatch.teacher_TK` and `teacher_weight_T` of all rows; None where the loss does not
    ask, or a row lacks it."""
    known = [row.likeliest for row in rows if row.likeliest is not None]
    if not LOSS_KINDS[settings.loss].needs_likeliest or not rows or len(known) < len(rows):
        return None, None
    logprobs, weights = (
        [getattr(each, name) for each in known] for name in ("logprobs", "weights")
    )
    return torch.from_numpy(np.concatenate(logprobs)), _joined(weights)


def _flat(
    columns: Sequence[Float32 | Bool | None],
    rows: Sequence[Row],
    dtype: type[np.generic] = np.float32,
) -> Tensor | None:
    """The columns at trained tokens, flat; None where a row lacks it."""
    parts = [
        column[row.loss_mask]
        for column, row in zip(columns, rows, strict=True)
        if column is not None
    ]
    if len(parts) < len(rows):
        return None
    return _joined(parts, dtype)


def _joined(
    parts: Sequence[npt.NDArray[np.generic]], dtype: type[np.generic] = np.float32
) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]))
