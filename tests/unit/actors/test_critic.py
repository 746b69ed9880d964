"""The critic: which values it gives, what it starts from, and what it shares with the policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from manta.actors.models.causal import model_state
from manta.actors.models.critic import Critic, build_critic
from manta.actors.models.policy import evaluate, evaluate_in_batches
from manta.algorithms.part_settings import CriticSettings
from tiny import VOCABULARY, tiny_model, tiny_rows, tiny_spec


def critic_of(policy: nn.Module, kind: str, seed: int = 3) -> Critic:
    """With a head that says something."""
    critic = build_critic(CriticSettings(model=kind), tiny_spec(), VOCABULARY, policy)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    critic.head.weight.data.normal_(generator=generator)
    critic.head.bias.data.fill_(0.5)
    return critic


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_a_value_is_of_what_stands_before_its_token(kind: str) -> None:
    """Row by row, without padding: the head on the state of the token before each trained one."""
    policy, rows = tiny_model(), tiny_rows((4, 3))
    critic = critic_of(policy, kind)
    found_T = evaluate(policy, rows, ("value",), 0.9, (critic,))["value"]
    wanted = []
    for row in rows:
        ids = torch.from_numpy(row.token_ids.astype(np.int64))[None]
        states_LD = policy.base_model(input_ids=ids).last_hidden_state[0]  # type: ignore[operator]
        value_L = states_LD @ critic.head.weight[0] + critic.head.bias
        wanted.append(value_L[row.loss_mask.nonzero()[0] - 1])
    torch.testing.assert_close(found_T, torch.cat(wanted), rtol=1e-5, atol=1e-5)
    assert found_T.dtype == torch.float32
    assert float(found_T.detach().std()) > 0.1


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_values_come_beside_log_probs_and_do_not_change_them(kind: str) -> None:
    policy, rows = tiny_model(), tiny_rows((4, 3))
    critic = critic_of(policy, kind)
    wants = ("logprob", "entropy", "value")
    found = evaluate_in_batches(policy, rows, wants, 0.9, 60, (critic,))
    alone = evaluate_in_batches(policy, rows, ("logprob", "entropy"), 0.9, 60)
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    at_once = evaluate(policy, rows, ("value",), 0.9, (critic,))["value"]
    torch.testing.assert_close(found["value"], at_once.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wants", "calls"),
    [
        ("shared", ("logprob", "value"), 1),
        ("shared", ("value",), 1),
        ("own", ("logprob", "value"), 1),
        ("own", ("value",), 0),
    ],
)
def test_the_policy_is_evaluated_once_at_most(
    kind: str, wants: tuple[str, ...], calls: int
) -> None:
    policy, rows = tiny_model(), tiny_rows((4,))
    critic = critic_of(policy, kind)
    seen: list[nn.Module] = []
    policy.base_model.register_forward_pre_hook(lambda trunk, inputs: seen.append(trunk))  # type: ignore[operator,union-attr]
    evaluate(policy, rows, wants, 1.0, (critic,))  # type: ignore[arg-type]
    assert len(seen) == calls


def test_values_are_float32_whatever_the_trunk_computes_in() -> None:
    policy, rows = tiny_model(), tiny_rows((4,))
    critic = critic_of(policy, "own")
    with torch.autocast("cpu", torch.bfloat16):
        found_T = evaluate(policy, rows, ("value",), 1.0, (critic,))["value"]
    exact_T = evaluate(policy, rows, ("value",), 1.0, (critic,))["value"]
    assert found_T.dtype == torch.float32
    assert not torch.equal(found_T, exact_T)
    torch.testing.assert_close(found_T, exact_T, rtol=0.1, atol=0.1)


def test_before_it_has_learnt_a_critic_says_0_everywhere() -> None:
    policy, rows = tiny_model(), tiny_rows((4,))
    for kind in ("shared", "own"):
        critic = build_critic(CriticSettings(model=kind), tiny_spec(), VOCABULARY, policy)  # type: ignore[arg-type]
        assert not evaluate(policy, rows, ("value",), 1.0, (critic,))["value"].any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_own_model_starts_as_a_copy_of_the_policy_without_a_head(
    tied: bool, dtype: str
) -> None:
    policy = tiny_model(seed=5, tied=tied, dtype=dtype)
    critic = build_critic(CriticSettings(), tiny_spec(tied, dtype=dtype), VOCABULARY, policy)
    assert critic.body is not None
    of_policy, of_critic = model_state(policy.base_model), model_state(critic.body)  # type: ignore[arg-type]
    assert of_policy.keys() == of_critic.keys()
    assert not any("lm_head" in name for name in of_critic)
    for name, tensor in of_critic.items():
        assert torch.equal(tensor, of_policy[name])
        assert tensor.data_ptr() != of_policy[name].data_ptr()
    assert critic.head.weight.dtype == torch.float32


def test_its_own_model_may_start_from_a_folder(tmp_path: Path) -> None:
    other = tiny_model(seed=7)
    other.save_pretrained(tmp_path)  # type: ignore[operator]
    settings = CriticSettings(path=str(tmp_path))
    critic = build_critic(settings, tiny_spec(), VOCABULARY, tiny_model())
    assert critic.body is not None
    of_other = model_state(other.base_model)  # type: ignore[arg-type]
    for name, tensor in model_state(critic.body).items():
        assert torch.equal(tensor, of_other[name])
    with pytest.raises(ValueError, match="has 19 embeddings"):
        build_critic(settings, tiny_spec(), VOCABULARY + 1, tiny_model())


def test_a_shared_head_has_no_other_parameters() -> None:
    critic = build_critic(CriticSettings(model="shared"), tiny_spec(), VOCABULARY, tiny_model())
    assert sorted(model_state(critic)) == ["head.bias", "head.weight"]


def test_a_value_without_a_critic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing in the learner's graph answers \['value'\]"):
        evaluate(tiny_model(), tiny_rows((2,)), ("logprob", "value"), 1.0)
