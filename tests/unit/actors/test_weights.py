from __future__ import annotations

import numpy as np
import torch

from manta.actors.models.causal import build_model, model_state
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.weight_tensors import pack, unpack
from manta.actors.weights import ALIGNMENT, Weights, content_hash
from manta.envs.records import WeightVersion

VERSION = WeightVersion(3, 1)
STATE = {
    "b.bias": torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16),
    "a.flag": torch.tensor([True, False, True]),
    "c.double": torch.tensor([[0.1], [0.2]], dtype=torch.float64),
    "d.scalar": torch.tensor(7, dtype=torch.int64),
    "e.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
}


def test_mixed_types_come_back_equal() -> None:
    back = unpack(pack(STATE, VERSION))
    assert list(back) == sorted(STATE)
    for name, tensor in STATE.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_every_tensor_starts_aligned_and_gaps_are_zero() -> None:
    weights = pack(STATE, VERSION)
    assert [spec.start % ALIGNMENT for spec in weights.specs] == [0] * len(STATE)
    covered = np.zeros(len(weights.data), bool)
    for spec in weights.specs:
        covered[spec.start : spec.end] = True
    assert not weights.data[~covered].any()
    assert (~covered).any()


def test_the_hash_follows_names_shapes_types_and_bytes_only() -> None:
    first = pack(STATE, VERSION)
    turned = {name: STATE[name].clone() for name in reversed(list(STATE))}
    assert pack(turned, WeightVersion(9, 9)).sha256 == first.sha256
    assert content_hash(first.specs, first.data) == first.sha256
    changed = [
        STATE | {"b.bias": torch.tensor([1.5, -2.0, 3.5], dtype=torch.bfloat16)},
        STATE | {"b.bias": STATE["b.bias"].to(torch.float16)},
        STATE | {"e.weight": STATE["e.weight"].reshape(2, 3)},
        {("f.flag" if name == "a.flag" else name): tensor for name, tensor in STATE.items()},
    ]
    hashes = {first.sha256, *(pack(state, VERSION).sha256 for state in changed)}
    assert len(hashes) == 5


def test_the_hash_of_a_known_state_stays_what_it_was() -> None:
    known = pack({"w": torch.arange(4, dtype=torch.float32)}, VERSION)
    assert known.sha256 == "ab78db4b836a267a3cbd486b50fab9418ced3fbcaf3cdcae30d84d0495c7825f"


def test_read_only_bytes_unpack_into_writable_tensors() -> None:
    weights = pack(STATE, VERSION)
    weights.data.flags.writeable = False
    frozen = Weights(VERSION, weights.specs, weights.data, weights.sha256)
    assert content_hash(frozen.specs, frozen.data) == weights.sha256
    unpack(frozen)["c.double"].add_(1.0)
    assert torch.equal(unpack(frozen)["c.double"], STATE["c.double"])


def test_tied_parameters_travel_once() -> None:
    sizes = BuildSpec(layers=1, width=16, heads=2, mlp_width=16, tie_embeddings=True)
    tied = model_state(build_model(ModelSpec(build=sizes), 11, 0))
    assert "model.embed_tokens.weight" in tied
    assert "lm_head.weight" not in tied
    untied = ModelSpec(
        build=BuildSpec(layers=1, width=16, heads=2, mlp_width=16, tie_embeddings=False)
    )
    assert "lm_head.weight" in model_state(build_model(untied, 11, 0))
