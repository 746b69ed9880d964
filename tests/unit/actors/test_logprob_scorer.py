"""The reference scorer reads the same log-probs off a model as the learner does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manta.actors.models.policy import evaluate
from manta.actors.scorers.logprob import LogprobScorer
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


def test_rows_that_are_scored_alone_do_not_depend_on_their_company() -> None:
    """Deterministic runs rely on it: which requests are scored together is a matter of time."""
    trajectories = [t for group in groups_of((6, 5)) for t in group.trajectories]
    scorer = LogprobScorer(tiny_model(), "base", 1)
    together = scorer.score(trajectories).logprobs
    for trajectory, logprobs in zip(trajectories, together, strict=True):
        np.testing.assert_array_equal(scorer.score([trajectory]).logprobs[0], logprobs)


def test_no_trajectories_give_no_scores() -> None:
    scorer = LogprobScorer(tiny_model(), "base", 1000)
    with torch.no_grad():
        assert scorer.score([]).logprobs == ()


@pytest.mark.parametrize("tokens_per_batch", [1, 10_000])
def test_what_is_likeliest_comes_with_it(tokens_per_batch: int) -> None:
    """Against all logits of every row alone; the log-probs of the tokens themselves stay as they
    are without."""
    model = tiny_model()
    trajectories = [t for group in groups_of((4, 3)) for t in group.trajectories]
    scorer = LogprobScorer(tiny_model(), "base", tokens_per_batch, temperature=0.7)
    found = scorer.score(trajectories, top_k=5)
    for own, other in zip(found.logprobs, scorer.score(trajectories).logprobs, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)
    for trajectory, likeliest in zip(trajectories, found.likeliest, strict=True):
        ids = torch.from_numpy(trajectory.token_ids.astype(np.int64))
        logp_LV = torch.log_softmax(model(ids[None]).logits[0].double() / 0.7, -1).detach()
        places = np.flatnonzero(trajectory.loss_mask) - 1
        wanted = logp_LV[torch.from_numpy(places)].topk(5)
        np.testing.assert_array_equal(likeliest.ids, wanted.indices.numpy())
        np.testing.assert_allclose(likeliest.logprobs[:, :5], wanted.values.numpy(), atol=2e-6)
        rest = np.log(1 - wanted.values.exp().sum(1).numpy())
        np.testing.assert_allclose(likeliest.logprobs[:, 5], rest, atol=1e-5)
        assert (likeliest.ids.dtype, likeliest.weights.dtype) == (np.int32, np.float32)
        assert likeliest.weights.tolist() == [1.0] * len(places)
