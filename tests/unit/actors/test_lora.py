"""A learner that trains an adapter alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.backends.state_files import read_parameters, read_scalars
from manta.actors.engines.embedded import EmbeddedEngine
from manta.actors.models.adapter import adapter_shapes, is_adapter
from manta.actors.models.causal import build_model, model_state
from manta.actors.models.lora import (
    add_adapter,
    base_hash,
    build_policy,
    merge_adapter,
    weights_hash,
)
from manta.actors.models.policy import token_logprobs
from manta.actors.models.spec import BuildSpec, LoraSpec, ModelSpec
from manta.actors.weight_tensors import pack, unpack
from manta.algorithms.tokens import LossTerms
from manta.envs.records import WeightVersion
from tests.tiny import VOCABULARY, tiny_rows

LORA = LoraSpec(rank=2, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"))
SIZES = BuildSpec(layers=2, width=16, heads=2, kv_heads=1, mlp_width=24)
SPEC = ModelSpec(build=SIZES, context=64, lora=LORA)
VERSION = WeightVersion(3, 0)
IDS = [np.arange(9, dtype=np.int32) % VOCABULARY]


def policy(spec: ModelSpec = SPEC, seed: int = 0) -> nn.Module:
    return build_policy(spec, VOCABULARY, seed)


def base(spec: ModelSpec = SPEC, seed: int = 0) -> nn.Module:
    return build_model(spec, VOCABULARY, seed)


def logprobs(model: nn.Module) -> np.ndarray:
    return token_logprobs(model, IDS)[0]


def train(backend: PlainBackend, steps: int = 3) -> None:
    rows = tiny_rows((3,))

    def loss(batch: object, stats: dict[str, Tensor]) -> LossTerms:
        return LossTerms(-stats["logprob"].mean(), {}, {})

    for _ in range(steps):
        backend.update([rows], ("logprob",), 1.0, loss, 1e-2)  # type: ignore[arg-type]


def test_at_first_it_changes_nothing_and_the_learner_trains_nothing_else() -> None:
    model = policy()
    np.testing.assert_array_equal(logprobs(model), logprobs(base()))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
    backend = PlainBackend(model, LearnerSettings())
    train(backend)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert np.abs(logprobs(model) - logprobs(base())).max() > 1e-3
    shapes = {name: tuple(t.shape) for name, t in model_state(base()).items()}
    published = unpack(backend.weights(VERSION))
    assert {n: tuple(t.shape) for n, t in published.items()} == adapter_shapes(LORA, shapes)
    assert is_adapter(published)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_published_and_merged_computes_as_the_learner(dtype: str) -> None:
    spec = replace(SPEC, dtype=dtype)  # type: ignore[arg-type]
    model = policy(spec)
    backend = PlainBackend(model, LearnerSettings())
    train(backend)
    published = unpack(backend.weights(VERSION))
    assert {str(t.dtype) for t in published.values()} == {f"torch.{dtype}"}
    whole = base(spec)
    merge_adapter(whole, LORA, published)
    bound = 1e-6 if dtype == "float32" else 0.05
    assert np.abs(logprobs(whole) - logprobs(model)).max() < bound
    with pytest.raises(ValueError, match=r"another model's adapter: .* is missing"):
        merge_adapter(whole, replace(LORA, targets=("o_proj",)), published)


def test_a_checkpoint_has_the_adapter_and_knows_its_base(tmp_path: Path) -> None:
    backend = PlainBackend(policy(), LearnerSettings())
    train(backend)
    write = backend.snapshot()
    write(tmp_path)
    assert is_adapter(read_parameters(tmp_path))
    assert read_scalars(tmp_path).base == weights_hash(base())
    resumed = PlainBackend(policy(), LearnerSettings())
    resumed.load(tmp_path)
    for each in (backend, resumed):
        train(each, 2)
    assert resumed.weights(VERSION).sha256 == backend.weights(VERSION).sha256
    with pytest.raises(ValueError, match="another model: the weights that its adapter is over"):
        PlainBackend(policy(seed=1), LearnerSettings()).load(tmp_path)
    with pytest.raises(ValueError, match="None: no adapter"):
        PlainBackend(base(), LearnerSettings()).load(tmp_path)


def test_an_adapter_leaves_the_hash_of_what_it_is_over() -> None:
    assert base_hash(base()) is None
    assert base_hash(policy()) == weights_hash(base())
    assert weights_hash(base()) != weights_hash(base(seed=1))


def test_layers_that_take_no_adapter_are_told() -> None:
    with pytest.raises(ValueError, match=r"no matrix called \['qproj'\]"):
        add_adapter(base(), replace(LORA, targets=("qproj",)), 0)
    with pytest.raises(ValueError, match=r"peft makes no adapter of ours at .*embed_tokens"):
        add_adapter(base(), replace(LORA, targets=("embed_tokens",)), 0)


async def test_the_embedded_engine_serves_the_newest_adapter_and_whole_weights_too() -> None:
    engine = EmbeddedEngine(cast(PreTrainedModel, base()), 64, 4, 1, False, VERSION, lora=LORA)
    served = policy()
    backend = PlainBackend(served, LearnerSettings())
    for _ in range(2):  # the second one replaces the first
        train(backend)
        weights = backend.weights(VERSION)
        await engine.pause()
        assert (await engine.load(weights)).sha256 == weights.sha256
        await engine.resume()
        assert np.abs((await engine.logprobs(IDS))[0] - logprobs(served)).max() < 1e-5
    other = base(seed=1)
    await engine.pause()
    await engine.load(pack(model_state(other), VERSION))
    assert np.abs((await engine.logprobs(IDS))[0] - logprobs(other)).max() < 1e-5
    await engine.load(weights)
    merge_adapter(other, LORA, unpack(weights))
    assert np.abs((await engine.logprobs(IDS))[0] - logprobs(other)).max() < 1e-5
    narrow = PlainBackend(policy(replace(SPEC, lora=replace(LORA, rank=1))), LearnerSettings())
    with pytest.raises(
        ValueError, match=r"does not fit the engine's model: .* has shape \(1, 16\)"
    ):
        await engine.load(narrow.weights(VERSION))
    engine.close()
