from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from manta.actors.backends.registry import build_backend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.state_files import read_weights
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.actors.weight_tensors import pack, unpack
from manta.actors.weights import ALIGNMENT, HASHED_CHUNK, Weights, content_hash, tree_hash
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


def test_the_hash_is_over_the_index_and_the_hashes_of_chunks() -> None:
    known = pack({"w": torch.arange(4, dtype=torch.float32)}, VERSION)
    index = b"[('w', 'float32', (4,))]"
    values = hashlib.sha256(np.arange(4, dtype=np.float32).tobytes()).digest()
    assert known.sha256 == hashlib.sha256(index + values).hexdigest()
    assert known.sha256 == "c008d99ee84dbf662b98c4b6a7923386351529d7f05f869055bd2e4b114cc883"


def test_every_chunk_counts_and_its_place_too() -> None:
    octets = np.zeros(2 * HASHED_CHUNK + 5, np.uint8)
    octets[0] = 1
    parts = [octets[:HASHED_CHUNK], octets[HASHED_CHUNK : 2 * HASHED_CHUNK], octets[-5:]]
    digests = b"".join(hashlib.sha256(part.tobytes()).digest() for part in parts)
    assert tree_hash(b"head", octets) == hashlib.sha256(b"head" + digests).hexdigest()
    moved = np.roll(octets, HASHED_CHUNK)
    late = octets.copy()
    late[-1] = 1
    assert len({tree_hash(b"", one) for one in (octets, moved, late)}) == 3


def test_weights_are_in_the_dtype_that_the_model_computes_in(tmp_path: Path) -> None:
    """What an engine runs in bfloat16 travels in bfloat16, though the learner's masters, and its
    checkpoints, are float32."""
    sizes = BuildSpec(layers=1, width=16, heads=2, mlp_width=16)
    model = build_model(ModelSpec(build=sizes, dtype="bfloat16"), 11, 0)
    backend = build_backend(LearnerSettings(), model)
    weights = backend.weights(VERSION)
    assert {spec.dtype for spec in weights.specs} == {"bfloat16"}
    assert sum(spec.end - spec.start for spec in weights.specs) == 2 * sum(
        parameter.numel() for parameter in model.parameters()
    )
    backend.save(tmp_path)
    assert {spec.dtype for spec in read_weights(tmp_path, VERSION).specs} == {"float32"}


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
