"""The reference scorer reads the same log-probs off a model as the learner does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manta.actors.models.causal import model_state
from manta.actors.models.policy import evaluate
from manta.actors.scorers.logprob import LogprobScorer
from manta.actors.weight_tensors import pack
from manta.envs.records import WeightVersion
from tiny import groups_of, plan_of, rows_by_index, tiny_model


@pytest.mark.parametrize("tokens_per_batch", [1, 70, 10_000])
def test_scores_equal_the_policys_log_probs(tokens_per_batch: int) -> None:
    groups = groups_of((6, 5))
    rows = rows_by_index(plan_of(groups), groups)
    wanted = evaluate(tiny_model(), list(rows.values()), ("logprob",), 0.7)["logprob"]
    scorer = LogprobScorer(tiny_model(), "base", tokens_per_batch, temperature=0.7)
    trajectories = [t for group in groups for t in group.trajectories]
    statistics = scorer.score(trajectories)
    assert statistics.version == "base"
    found = []
    for trajectory, logprobs in zip(trajectories, statistics.logprobs, strict=True):
        assert logprobs.dtype == np.float32
        assert logprobs.shape == trajectory.token_ids.shape
        assert not logprobs[~trajectory.loss_mask].any()
        found.append(logprobs[trajectory.loss_mask])
    np.testing.assert_allclose(np.concatenate(found), wanted.detach().numpy(), atol=1e-6)


def test_loaded_weights_are_scored_under_their_version() -> None:
    other = tiny_model(seed=1)
    weights = pack(model_state(other), WeightVersion(4, 2))
    scorer = LogprobScorer(tiny_model(), "base", 1000)
    receipt = scorer.load(weights)
    assert receipt.sha256 == weights.sha256
    trajectories = groups_of((3,))[0].trajectories
    found = scorer.score(trajectories)
    wanted = LogprobScorer(other, "4.2", 1000).score(trajectories)
    assert found.version == wanted.version == "4.2"
    for mine, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_another_models_weights_are_refused_by_name() -> None:
    weights = pack(model_state(tiny_model(tied=False)), WeightVersion(0, 0))
    scorer = LogprobScorer(tiny_model(), "base", 1000)
    with pytest.raises(ValueError, match=r"lm_head\.weight is unknown"):
        scorer.load(weights)


def test_no_trajectories_give_no_scores() -> None:
    scorer = LogprobScorer(tiny_model(), "base", 1000)
    with torch.no_grad():
        assert scorer.score([]).logprobs == ()
