"""The reward model: whose state it scores, what it starts from, and its form for transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from manta.actors.models.causal import model_state
from manta.actors.models.policy import evaluate, evaluate_in_batches
from manta.actors.models.reward_model import (
    RewardModel,
    build_reward_model,
    last_states,
    load_reward_model,
    save_reward_model,
)
from manta.actors.models.spec import BuildSpec
from manta.actors.rows import Row
from manta.algorithms.part_settings import RewardModelSettings
from tiny import VOCABULARY, tiny_model, tiny_rows, tiny_spec

PAD = VOCABULARY - 1


def reward_of(policy: nn.Module) -> RewardModel:
    """With a head that says something."""
    reward = build_reward_model(RewardModelSettings(), tiny_spec(), VOCABULARY, policy)
    reward.head.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    return reward


def without_pad(rows: list[Row]) -> list[Row]:
    """A pad token at the end of a row would not be seen by transformers."""
    return [replace(row, token_ids=np.minimum(row.token_ids, PAD - 1)) for row in rows]


def by_hand(reward: RewardModel, row: Row) -> Tensor:
    ids = torch.from_numpy(row.token_ids.astype(np.int64))[None]
    states_LD = reward.body(input_ids=ids).last_hidden_state[0]
    return states_LD[-1] @ reward.head.weight[0]


def test_a_score_is_of_the_last_token_of_all_and_stands_at_the_last_trained_one() -> None:
    policy, rows = tiny_model(), tiny_rows((4, 3))
    reward = reward_of(policy)
    wanted = torch.stack([by_hand(reward, row) for row in rows])
    torch.testing.assert_close(reward.scores(rows), wanted, rtol=1e-5, atol=1e-5)
    found_T = evaluate(policy, rows, ("score",), 1.0, (reward,))["score"]
    for part, score in zip(found_T.split([r.num_tokens for r in rows]), wanted, strict=True):
        assert float(part[-1].detach()) == pytest.approx(float(score.detach()), rel=1e-4)
        assert not part[:-1].any()
    assert float(wanted.detach().std()) > 0.1


def test_scores_come_in_batches_beside_log_probs() -> None:
    policy, rows = tiny_model(), tiny_rows((4, 3))
    reward = reward_of(policy)
    found = evaluate_in_batches(policy, rows, ("logprob", "score"), 0.9, 40, (reward,))
    at_once = evaluate(policy, rows, ("logprob", "score"), 0.9, (reward,))
    for name in at_once:
        torch.testing.assert_close(found[name], at_once[name].detach(), rtol=1e-5, atol=1e-5)


def test_a_row_without_trained_tokens_has_a_score_and_no_place_for_it() -> None:
    policy, rows = tiny_model(), tiny_rows((3,))
    rows[1] = replace(rows[1], loss_mask=np.zeros_like(rows[1].loss_mask))
    reward = reward_of(policy)
    torch.testing.assert_close(reward.scores(rows)[1], by_hand(reward, rows[1]))
    found_T = evaluate(policy, rows, ("score",), 1.0, (reward,))["score"]
    assert len(found_T) == rows[0].num_tokens + rows[2].num_tokens
    assert torch.count_nonzero(found_T) == 2


def test_it_starts_from_the_policy_s_trunk_and_says_0() -> None:
    policy = tiny_model(seed=4)
    reward = build_reward_model(RewardModelSettings(), tiny_spec(), VOCABULARY, policy)
    own, trunk = model_state(reward.body), model_state(policy.base_model)  # type: ignore[arg-type]
    assert own.keys() == trunk.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in trunk.items())
    assert all(own[name].data_ptr() != tensor.data_ptr() for name, tensor in trunk.items())
    assert not reward.scores(tiny_rows((3,))).any()
    assert reward.head.bias is None


def test_it_starts_from_another_model_if_told(tmp_path: Path) -> None:
    other = tiny_model(seed=5)
    other.save_pretrained(tmp_path)  # type: ignore[operator]
    settings = RewardModelSettings(path=str(tmp_path))
    reward = build_reward_model(settings, tiny_spec(), VOCABULARY, tiny_model())
    own, trunk = model_state(reward.body), model_state(other.base_model)  # type: ignore[arg-type]
    assert all(torch.equal(own[name], tensor) for name, tensor in trunk.items())


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_gives_the_same_scores_from_the_folder(
    tmp_path: Path, architecture: str, dtype: str
) -> None:
    sizes = BuildSpec(2, 16, 2, 24, kv_heads=1, architecture=architecture)  # type: ignore[arg-type]
    spec = replace(tiny_spec(dtype=dtype), build=sizes)
    reward = build_reward_model(RewardModelSettings(), spec, VOCABULARY, model_of(spec))
    reward.head.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    tensors = {name: p.detach() for name, p in reward.named_parameters()}
    save_reward_model(tmp_path, spec, VOCABULARY, tensors, PAD)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == f"{architecture.capitalize()}ForSequenceClassification"
    assert (theirs.config.num_labels, theirs.config.pad_token_id) == (1, PAD)
    rows = without_pad(tiny_rows((4, 3)))
    width = max(len(row.token_ids) for row in rows)
    padded = torch.full((len(rows), width), PAD)
    for ids, row in zip(padded, rows, strict=True):
        ids[: len(row.token_ids)] = torch.from_numpy(row.token_ids)
    with torch.no_grad():
        wanted = theirs(input_ids=padded, attention_mask=padded != PAD).logits[:, 0].float()
        found = reward.scores(rows)
        states = [last_states(m, rows) for m in (reward.body, load_reward_model(tmp_path, dtype))]
    tolerance = 1e-5 if dtype == "float32" else 0.05
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    head = load_file(tmp_path / "model.safetensors")["score.weight"]
    assert torch.equal(*states) and torch.equal(head, reward.head.weight)


def model_of(spec: object) -> nn.Module:
    from manta.actors.models.causal import build_model

    return build_model(spec, VOCABULARY, 0)  # type: ignore[arg-type]


def test_tensors_of_another_model_are_named(tmp_path: Path) -> None:
    tensors = dict(reward_of(tiny_model()).named_parameters())
    del tensors["body.norm.weight"]
    with pytest.raises(
        ValueError, match=r"no reward model of that kind: model\.norm\.weight is mi"
    ):
        save_reward_model(tmp_path, tiny_spec(), VOCABULARY, tensors, PAD)


def test_a_folder_without_a_reward_model_is_told(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"lacks score\.weight: it is no reward model"):
        load_reward_model(tmp_path, "float32")
