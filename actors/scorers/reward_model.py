"""The reward model: a frozen sequence classifier with one output, read off trajectories.

Owns the version and the scores. How what is shown becomes tokens is
`manta.actors.scorers.wording`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification

from manta.actors.micro_batches import micro_batches, padded_batches
from manta.actors.models.packed_attention import is_packable
from manta.actors.models.reward_model import last_states, load_reward_model
from manta.actors.rows import Row
from manta.actors.scorers.wording import named, wording_for
from manta.envs.protocols import Tokenizer
from manta.envs.records import Bool, Score, Shown

_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """`tokens_per_batch` bounds the tokens scored at once (1: every row alone); `device` is where
    torch computes."""

    tokens_per_batch: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


class RewardModelScorer:
    """The model in `folder`, for what a policy with the tokenizer `policy` writes.

    A decoder's score is its head on the state of the last token; tokens at the end that its config
    says are padding do not count, as in transformers. Its rows go one behind the other in one
    sequence, prompts that samples share once, where the attention can keep them apart. Other models
    get padded rows of similar length, and score as they do themselves.

    Raises ValueError where the folder holds no such model, or one with fewer embeddings than the
    policy's tokenizer has ids.
    """

    def __init__(self, folder: Path, policy: Tokenizer, settings: ScorerSettings) -> None:
        self.version = version_of_folder(folder)
        self._wording = wording_for(folder, policy)
        self._settings = settings
        self._model = load_reward_model(folder, settings.dtype).to(settings.device)
        self._pad_id: int | None = self._model.config.get_text_config().pad_token_id
        self._is_decoder = isinstance(self._model, GenericForSequenceClassification)

    @torch.inference_mode()
    def score(self, shown: Sequence[Shown]) -> tuple[Score, ...]:
        """One score for each of `shown`, in order.

        Raises ValueError naming the trajectory that has more tokens than the model takes, tokens
        that it does not know, or a score that is not finite.
        """
        rows = [self._row(index, each) for index, each in enumerate(shown)]
        by_head = self._is_decoder and is_packable(self._model)
        scores = np.zeros(len(rows), np.float32)
        for batch in micro_batches(rows, self._settings.tokens_per_batch):
            for part in [batch] if by_head else self._padded(batch):
                found = self._by_head(part) if by_head else self._by_itself(part)
                scores[[row.index for row in part]] = found.float().cpu().numpy()
        for each, value in zip(shown, scores, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"reward model {self.version} scores {named(each)} as {value}: its weights, or "
                    "what it computes with (dtype), cannot be right; nothing was rewarded"
                )
        return tuple(Score(float(value), {}) for value in scores)

    def _row(self, index: int, shown: Shown) -> Row:
        """Its tokens, without padding at the end."""
        ids = self._wording.tokens(shown)
        self._check(ids, shown)
        length = len(ids)
        if self._is_decoder and self._pad_id is not None:
            (real,) = np.nonzero(ids != self._pad_id)
            length = int(real[-1]) + 1 if len(real) else 1
        return Row(index, ids[:length], _said_from(length, shown), None, None, {})

    def _check(self, ids: np.ndarray[tuple[int], np.dtype[np.int32]], shown: Shown) -> None:
        config = self._model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"{named(shown)} has {len(ids):,} tokens, reward model {self.version} was made for "
                f"at most {limit:,}: lower model.context, or choose another reward model"
            )
        if int(ids.max()) >= config.vocab_size:
            raise ValueError(
                f"{named(shown)} has a token {int(ids.max())}, reward model {self.version} knows "
                f"{config.vocab_size} of them: it was made with another tokenizer"
            )

    def _by_head(self, rows: Sequence[Row]) -> Tensor:
        head = cast(nn.Linear, self._model.score)
        return cast(Tensor, head(last_states(self._model, rows)))[:, 0]

    def _padded(self, rows: Sequence[Row]) -> list[list[Row]]:
        if self._pad_id is None:
            return [[row] for row in rows]
        return padded_batches(rows)

    def _by_itself(self, rows: Sequence[Row]) -> Tensor:
        """By the model's own forward pass, over rows padded on the right."""
        lengths = [len(row.token_ids) for row in rows]
        ids_BL = np.full((len(rows), max(lengths)), self._pad_id or 0, np.int64)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids_BL[i, :length] = row.token_ids
        is_real_BL = np.arange(max(lengths)) < np.array(lengths)[:, None]
        device = self._settings.device
        output = self._model(
            input_ids=torch.from_numpy(ids_BL).to(device),
            attention_mask=torch.from_numpy(is_real_BL.astype(np.int64)).to(device),
        )
        return cast(Tensor, output.logits)[:, 0]


def version_of_folder(folder: Path) -> str:
    """`NAME#HASH`: the folder's name and a SHA-256 over its config and weights, by file name.

    Raises ValueError where there are none.
    """
    files = sorted(
        each
        for each in (folder.iterdir() if folder.is_dir() else ())
        if each.name == "config.json" or each.suffix == ".safetensors"
    )
    if not any(each.suffix == ".safetensors" for each in files):
        raise ValueError(
            f"scorer model '{folder}': there is no folder with config.json and *.safetensors; it "
            "must be reached by this path on every node that may run the scorer"
        )
    digest = hashlib.sha256()
    for each in files:
        digest.update(f"{each.name}\0{each.stat().st_size}\0".encode())
        with each.open("rb") as stream:
            while data := stream.read(_READ_BYTES):
                digest.update(data)
    return f"{folder.name}#{digest.hexdigest()[:12]}"


def _said_from(length: int, shown: Shown) -> Bool:
    """bool[length], True at the first token that the policy said, so that samples of one prompt
    share what comes before it."""
    is_first = np.zeros(length, np.bool_)
    [trajectory] = shown.trajectories
    (said,) = np.nonzero(trajectory.loss_mask[:length])
    if len(said) and said[0] > 0:
        is_first[said[0]] = True
    return is_first
