"""A reference of several models' logits: its arithmetic, its name, and how it changes hands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manta.actors.backends.protocol import TopK, Want
from manta.actors.models.causal import model_state
from manta.actors.models.combined import evaluate_combined
from manta.actors.scorers.combining import CombinedState, CombiningScorer
from manta.actors.scorers.settings import Combination, ContrastConfig
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion
from tests.tiny import VOCABULARY, groups_of, tiny_model, tiny_rows

TEMPERATURE = 0.7
CONTRAST = ContrastConfig("b", "c", scale=1.5, least=0.01, beta=0.2)
COMBINATIONS = {
    "one": Combination({"a": 2.5}),
    "two": Combination({"a": 2.0, "b": -1.0}),
    "three": Combination({"a": 1.0, "b": 0.7, "c": -0.7}),
    "adaptive": Combination({"b": 1.0}, CONTRAST),
    "adaptive beside another": Combination({"a": 0.5, "c": 0.25}, CONTRAST),
}
SEEDS = {"a": 1, "b": 2, "c": 3}


def weights(name: str) -> Weights:
    return pack(model_state(tiny_model(seed=SEEDS[name])), WeightVersion(SEEDS[name], 0))


def scorer() -> CombiningScorer:
    return CombiningScorer(lambda: tiny_model(seed=0), 1000, TEMPERATURE)


def by_hand(combination: Combination, ids: np.ndarray, place: int) -> tuple[np.ndarray, float]:
    """The log-probs of the word at `place` of a row, and what it counts, by plain sums in float64;
    all logits of every model."""
    z = {}
    for name in combination.names:
        whole = torch.from_numpy(ids.astype(np.int64))[None]
        logits = tiny_model(seed=SEEDS[name])(whole).logits[0, place - 1]
        z[name] = logits.detach().double().numpy() / TEMPERATURE
    mixed = np.zeros(VOCABULARY)
    for name, coefficient in combination.coefficients.items():
        for v in range(VOCABULARY):
            mixed[v] += coefficient * z[name][v]
    weight, told = 1.0, combination.contrast
    if told is not None:
        p, q = (np.exp(z[n]) / np.exp(z[n]).sum() for n in (told.toward, told.away))
        pull = told.scale * sum(abs(x - y) for x, y in zip(p, q, strict=True)) + told.least
        mixed += pull * (z[told.toward] - z[told.away])
        weight = told.beta / pull
    return mixed - np.log(np.exp(mixed).sum()), weight


@pytest.mark.parametrize("name", COMBINATIONS)
def test_by_hand(name: str) -> None:
    combination, rows = COMBINATIONS[name], tiny_rows((3, 2))
    models = {each: tiny_model(seed=SEEDS[each]) for each in combination.names}
    wants: tuple[Want, ...] = ("logprob", TopK(3), "top_ids", "top_rest")
    found = evaluate_combined(models, combination, rows, wants, TEMPERATURE, 4 * VOCABULARY)
    whole = evaluate_combined(models, combination, rows, wants, TEMPERATURE)
    for statistic, values in found.items():
        torch.testing.assert_close(values, whole[statistic], rtol=1e-5, atol=1e-5)
    assert ("weight" in found) == (combination.contrast is not None)
    t = 0
    for row in rows:
        for place in np.flatnonzero(row.loss_mask):
            if t % 5 == 0:
                logp_V, weight = by_hand(combination, row.token_ids, int(place))
                best = np.argsort(-logp_V)[:3]
                assert float(found["logprob"][t]) == pytest.approx(
                    logp_V[row.token_ids[place]], abs=2e-5
                )
                np.testing.assert_array_equal(found["top_ids"][t].numpy(), best)
                np.testing.assert_allclose(found["top_k"][t], logp_V[best], atol=2e-5)
                rest = np.log(np.delete(np.exp(logp_V), best).sum())
                assert float(found["top_rest"][t]) == pytest.approx(rest, abs=1e-4)
                if combination.contrast is not None:
                    assert float(found["weight"][t]) == pytest.approx(weight, rel=1e-4)
            t += 1
    assert t == len(found["logprob"]) > 20


def test_a_combination_scores_and_is_named_after_what_it_is_made_of() -> None:
    combination = COMBINATIONS["adaptive"]
    found = scorer()
    receipts = found.combine(combination, [weights(name) for name in combination.names])
    assert [r.sha256 for r in receipts] == [weights(name).sha256 for name in ("b", "c")]
    assert found.version.startswith("1 x b + w x (b - c)#")
    trajectories = groups_of((4,))[0].trajectories
    told = found.score(trajectories, top_k=2)
    assert told.version == found.version
    some = trajectories[0]
    logp_V, weight = by_hand(combination, some.token_ids, int(np.flatnonzero(some.loss_mask)[0]))
    assert told.likeliest[0].logprobs[0, 0] == pytest.approx(logp_V.max(), abs=2e-5)
    assert told.likeliest[0].weights[0] == pytest.approx(weight, rel=1e-4)
    other = Combination({"b": 1.0}, ContrastConfig("b", "c", scale=1.4, least=0.01, beta=0.2))
    again = scorer()
    again.combine(other, [weights(name) for name in other.names])
    assert again.version != found.version, "the hash is over the coefficients too"


def test_another_worker_goes_on_from_it_and_one_model_takes_its_place() -> None:
    combination = COMBINATIONS["three"]
    first, second = scorer(), scorer()
    first.combine(combination, [weights(name) for name in combination.names])
    state = first.state()
    assert isinstance(state, CombinedState)
    assert second.adopt(state) == first.version == second.version
    trajectories = groups_of((3,))[0].trajectories
    pairs = zip(
        first.score(trajectories).logprobs, second.score(trajectories).logprobs, strict=True
    )
    assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)
    second.load(weights("b"), "stage:b")
    assert second.version == f"stage:b#{weights('b').sha256[:8]}"
    alone = CombiningScorer(lambda: tiny_model(seed=2), 1000, TEMPERATURE).score(trajectories)
    pairs = zip(second.score(trajectories).logprobs, alone.logprobs, strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in pairs)
    assert first.adopt(second.state()) == second.version


def test_weights_of_another_model_are_refused_and_change_nothing() -> None:
    found = scorer()
    before = found.version
    wrong = pack({"model.norm.weight": torch.zeros(3)}, WeightVersion(0, 0))
    for parts in ([weights("a"), wrong], [wrong, weights("b")]):
        with pytest.raises(ValueError):
            found.combine(COMBINATIONS["two"], parts)
        assert found.version == before
