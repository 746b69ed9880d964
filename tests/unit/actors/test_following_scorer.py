"""A reference that follows the policy: the average's arithmetic, its names, and its resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from manta.actors.models.causal import model_state
from manta.actors.scorers.following import REFERENCE_FILE, FollowingScorer
from manta.actors.weight_tensors import pack
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion
from tests.tiny import groups_of, tiny_model

DECAY = 0.9


def weights(seed: int) -> Weights:
    return pack(model_state(tiny_model(seed=seed)), WeightVersion(seed, 0))


def scorer() -> FollowingScorer:
    return FollowingScorer(tiny_model(seed=0), 1000)


def state(of: FollowingScorer) -> dict[str, Tensor]:
    return model_state(of._model)


def test_weights_are_scored_under_a_name_of_their_content() -> None:
    first = scorer()
    assert first.version == f"initial#{weights(0).sha256[:8]}"
    receipt = first.load(weights(4), "stage:sft")
    assert receipt.sha256 == weights(4).sha256
    assert first.version == f"stage:sft#{weights(4).sha256[:8]}"
    trajectories = groups_of((3,))[0].trajectories
    found = first.score(trajectories)
    assert found.version == first.version
    wanted = FollowingScorer(tiny_model(seed=4), 1000).score(trajectories)
    for mine, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_hard_refresh_is_the_policy() -> None:
    reference = scorer()
    reference.follow(weights(3), "step:3", None)
    assert reference.version == f"step:3#{weights(3).sha256[:8]}"
    for name, tensor in model_state(tiny_model(seed=3)).items():
        assert torch.equal(state(reference)[name], tensor)


def test_a_moving_average_by_hand() -> None:
    reference = scorer()
    states = [model_state(tiny_model(seed=seed)) for seed in range(3)]
    for step in (1, 2):
        reference.follow(weights(step), f"ema(0.9)@{step}", DECAY)
    for name, start in states[0].items():
        wanted = start.double()
        for policy in states[1:]:
            wanted = DECAY * wanted + (1 - DECAY) * policy[name].double()
        torch.testing.assert_close(state(reference)[name].double(), wanted, atol=1e-7, rtol=0)


def test_the_average_keeps_what_a_coarse_model_cannot_hold() -> None:
    """Steps of a thousandth are lost in bfloat16, one by one, and count in float32."""
    coarse = tiny_model(seed=0).to(torch.bfloat16)
    reference = FollowingScorer(coarse, 1000)
    before = {name: tensor.float().clone() for name, tensor in model_state(coarse).items()}
    policy = pack(
        {n: (t.float() * 1.5).to(torch.bfloat16) for n, t in model_state(coarse).items()},
        WeightVersion(1, 0),
    )
    for step in range(300):
        reference.follow(policy, f"ema@{step}", 0.999)
    moved = state(reference)["model.norm.weight"].float() / before["model.norm.weight"]
    wanted = 1 + 0.5 * (1 - 0.999**300)
    assert abs(float(moved.mean()) - wanted) < 0.01


def test_versions_name_the_history_of_an_average() -> None:
    one, other = scorer(), scorer()
    for reference, seeds in ((one, (1, 2)), (other, (2, 1))):
        for step, seed in enumerate(seeds):
            reference.follow(weights(seed), f"ema(0.9)@{step}", DECAY)
    assert one.version != other.version
    again = scorer()
    again.follow(weights(1), "ema(0.9)@0", DECAY)
    again.follow(weights(2), "ema(0.9)@1", DECAY)
    assert again.version == one.version


@pytest.mark.parametrize("decay", [None, DECAY])
def test_what_is_restored_goes_on_to_the_bit(tmp_path: Path, decay: float | None) -> None:
    alone, killed = scorer(), scorer()
    for reference in (alone, killed):
        reference.follow(weights(1), "at@1", decay)
    write = killed.snapshot()
    killed.follow(weights(5), "lost", decay)  # what comes later is not in the snapshot
    write(tmp_path)
    resumed = scorer()
    assert resumed.restore(tmp_path) == alone.version
    for reference in (alone, resumed):
        reference.follow(weights(2), "at@2", decay)
    assert resumed.version == alone.version
    for name, tensor in state(alone).items():
        assert torch.equal(state(resumed)[name], tensor)


def test_a_torn_file_and_another_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / REFERENCE_FILE).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"cannot read .*reference\.safetensors"):
        scorer().restore(tmp_path)
    other = pack(model_state(tiny_model(tied=False)), WeightVersion(0, 0))
    for decay in (None, DECAY):
        with pytest.raises(ValueError, match=r"lm_head\.weight is unknown"):
            scorer().follow(other, "x", decay)
