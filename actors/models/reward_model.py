"""The reward model: one score of a whole row, from the state of its last token.

Owns its construction, its evaluation, and its form as a Hugging Face folder. What scores are good
for is `manta.algorithms`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from manta.actors.backends.protocol import Want
from manta.actors.models.causal import merge_layers, model_config
from manta.actors.models.policy import hidden_states
from manta.actors.models.resident import ResidentModule
from manta.actors.models.spec import ModelSpec
from manta.actors.models.trunk import own_trunk, width
from manta.actors.rows import Row
from manta.actors.weight_tensors import refuse_mismatch
from manta.algorithms.part_settings import RewardModelSettings

_HEAD = "head.weight"
_SCORE = "score.weight"
"""What the head is called here, and in a Hugging Face folder."""


class RewardModel(ResidentModule):
    """A linear head without bias, in float32 at least, on the states of `body`.

    The head starts at 0, so that every score does.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width(body), 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def scores(self, rows: Sequence[Row]) -> Tensor:
        """float32[R], with gradients: the head over the state of each row's last token, trained or
        not, after all tokens of the row."""
        last_RD = last_states(self.body, rows)
        # Scores are compared to a few digits: no lower precision, whatever the trunk computes in
        with torch.autocast(last_RD.device.type, enabled=False):
            score_R: Tensor = self.head(last_RD.to(self.head.weight.dtype))[:, 0]
        return score_R

    def statistics(
        self,
        rows: Sequence[Row],
        wants: Sequence[Want],
        temperature: float,
        hidden: Callable[[], Tensor],
    ) -> dict[str, Tensor]:
        """`score`: the row's at its last trained token, 0 at the others. A row without trained
        tokens has nowhere to put it, and its score is left out."""
        if "score" not in wants:
            return {}
        counts = np.array([row.num_tokens for row in rows], np.int64)
        score_R = self.scores(rows)
        score_T = score_R.new_zeros(int(counts.sum()))
        spoken = torch.from_numpy(counts > 0).to(score_R.device)
        ends = torch.from_numpy(np.cumsum(counts) - 1).to(score_R.device)
        return {"score": score_T.index_put((ends[spoken],), score_R[spoken])}


def build_reward_model(
    settings: RewardModelSettings, spec: ModelSpec, vocab_size: int, policy: nn.Module
) -> RewardModel:
    """The reward model that a stage starts with, beside `policy`, a model of `spec`.

    Raises ValueError where the model at `settings.path` does not go with the tokenizer.
    """
    body = own_trunk(settings.path, spec, vocab_size, policy)
    return RewardModel(body).to(next(policy.parameters()).device)


def save_reward_model(
    folder: Path,
    spec: ModelSpec,
    vocab_size: int,
    tensors: Mapping[str, Tensor],
    pad_id: int | None,
) -> None:
    """Writes a reward model over a trunk of `spec` as a Hugging Face folder, which
    `AutoModelForSequenceClassification.from_pretrained` loads: config.json with one label, and
    model.safetensors with the trunk in the dtype of `spec` and the score's head in float32.

    `tensors` are the parameters of a `RewardModel`. transformers takes for a row's last token the
    last that is not `pad_id`; it must be none that rows end with, and without one transformers
    scores one row at a time.

    Raises ValueError where they are another model's, naming the first that does not belong.
    """
    config = model_config(spec, vocab_size)
    config.num_labels, config.pad_token_id, config.dtype = 1, pad_id, spec.dtype
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    own = dict(model.named_parameters())
    given = {_published(name, model.base_model_prefix): each for name, each in tensors.items()}
    refuse_mismatch(own, given, "this is no reward model of that kind")
    dtype = getattr(torch, spec.dtype)
    kept = {
        name: tensor.detach().cpu().to(torch.float32 if name == _SCORE else dtype).contiguous()
        for name, tensor in given.items()
    }
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def load_reward_model(folder: Path, dtype: str) -> PreTrainedModel:
    """The sequence classifier with one label in a Hugging Face folder: frozen, in evaluation mode,
    on the CPU, its parameters in `dtype`.

    Raises ValueError where it has no head, or one that gives more than a score.
    """
    model, told = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True
    )
    if told["missing_keys"]:
        # transformers makes such tensors up: a head of random numbers is no reward
        raise ValueError(
            f"reward model '{folder}' lacks {', '.join(sorted(told['missing_keys']))}: it is no "
            "reward model but what one is trained from; train it with a stage of algorithm "
            "reward_model"
        )
    if model.config.num_labels != 1:
        raise ValueError(
            f"reward model '{folder}' has {model.config.num_labels} outputs; one with a single "
            "score is needed (num_labels 1 in its config.json)"
        )
    merge_layers(model)
    return cast(PreTrainedModel, model.requires_grad_(False).eval())


def last_states(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """float[R, D], with gradients: the state of `model`, with or without a head, of each row's last
    token, trained or not, after all tokens of the row."""
    states_TD, _ = hidden_states(model, [_followed(row) for row in rows])
    ends = np.cumsum([row.num_tokens + 1 for row in rows], dtype=np.int64) - 1
    return states_TD[torch.from_numpy(ends).to(states_TD.device)]


def _published(name: str, prefix: str) -> str:
    return _SCORE if name == _HEAD else f"{prefix}.{name.removeprefix('body.')}"


def _followed(row: Row) -> Row:
    """`row` with one more trained token, which is predicted from the state of the row's last."""
    return replace(
        row,
        token_ids=np.append(row.token_ids, np.int32(0)),
        loss_mask=np.append(row.loss_mask, True),
    )
