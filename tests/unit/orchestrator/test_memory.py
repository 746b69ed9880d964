"""The memory formulas against real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from manta.actors.models.causal import build_model
from manta.actors.models.hidden_matrices import hidden_matrices
from manta.actors.models.spec import BuildSpec, ModelSpec
from manta.orchestrator import memory, survey
from manta.orchestrator.memory import saved_for_backward
from manta.orchestrator.model_sizes import model_sizes, num_hidden, num_parameters
from tests.unit.orchestrator.tiny_run import load

BUILDS = [
    BuildSpec(layers=2, width=32, heads=4, mlp_width=48),
    BuildSpec(layers=3, width=32, heads=4, mlp_width=48, kv_heads=2, tie_embeddings=False),
    BuildSpec(layers=1, width=48, heads=2, mlp_width=40, architecture="llama"),
    BuildSpec(layers=2, width=64, heads=8, mlp_width=96, kv_heads=1, architecture="llama",
              tie_embeddings=False),
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDS, ids=repr)
def test_the_parameter_count_is_the_models(build: BuildSpec) -> None:
    spec = ModelSpec(build=build, context=16)
    model = build_model(spec, 101, seed=0)
    assert num_parameters(model_sizes(spec, 101)) == sum(p.numel() for p in model.parameters())
    hidden, named = hidden_matrices(model), dict(model.named_parameters())
    assert num_hidden(model_sizes(spec, 101)) == sum(named[name].numel() for name in hidden)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_parameter_count_from_a_folder(tmp_path: Path, family: str, tied: bool) -> None:
    config = AutoConfig.for_model(
        family, vocab_size=64, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    sizes = model_sizes(ModelSpec(path=str(tmp_path)), 64)
    assert num_parameters(sizes) == sum(p.numel() for p in model.parameters())


def saved_bytes(spec: ModelSpec, rows: int, tokens: int) -> int:
    """What autograd keeps of a forward pass, every storage once, parameters left out."""
    model = build_model(spec, 50, seed=0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    input_ids = torch.zeros(rows, tokens, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(input_ids=input_ids, use_cache=False)  # type: ignore[operator]
    assert output.last_hidden_state.shape == (rows, tokens, spec.build and spec.build.width)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("build", BUILDS[1:], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps_of_a_layer(build: BuildSpec, dtype: str) -> None:
    """Two depths, so that what lies outside of the layers drops out."""
    rows, tokens = 4, 64
    sizes = {"width": build.width, "heads": build.heads, "mlp_width": build.mlp_width,
             "kv_heads": build.kv_heads, "architecture": build.architecture}  # fmt: skip
    specs = [
        ModelSpec(build=BuildSpec(layers=layers, **sizes), context=tokens, dtype=dtype)  # type: ignore[arg-type]
        for layers in (1, 3)
    ]
    shallow, deep = (saved_bytes(spec, rows, tokens) for spec in specs)
    element = 4 if dtype == "float32" else 2
    estimated = saved_for_backward(model_sizes(specs[1], 50), rows * tokens, element)
    assert (deep - shallow) / 2 * 3 == pytest.approx(estimated, rel=0.01)


def estimated(folder: Path, *overrides: str) -> dict[tuple[str, str], int]:
    loaded = load(folder, *overrides)
    parts = memory.estimate(loaded, survey.look(loaded))
    return {(part.role, part.what): part.bytes for part in parts}


def test_what_each_role_holds(tmp_path: Path) -> None:
    parts = estimated(tmp_path)
    # Embeddings 14 x 8; attention 4 x 8 x 8 + 3 x 8; feed-forward 3 x 8 x 16; three norms of 8.
    count = 112 + 280 + 384 + 24
    assert parts["learner", "master weights"] == parts["learner", "gradient"] == 4 * count
    assert parts["learner", "adamw states"] == 8 * count
    assert parts["rollout", "weights"] == 4 * count
    assert parts["rollout", "keys and values"] == 16 * 24 * 1 * 2 * 8 * 4
    assert parts["rollout", "the bytes that deltas are applied to"] == 4 * count
    assert parts["learner", "weights to publish, and those before"] == 8 * count
    assert parts["learner", "a checkpoint as it is written"] == 12 * count
    assert parts["object store", "newest and next weights"] == 8 * count
    assert parts["weight store", "newest and next weights"] == 8 * count
    # 4 samples of 4 + 4 tokens, 13 bytes each; 8 prompts a step, 39 steps (of two
    # checkpoints, one still being written) and one in flight.
    assert parts["object store", "groups until a checkpoint covers them"] == 4 * 8 * 13 * 8 * 40
    assert parts["learner", "logits of a chunk"] == 3 * 4 * 128 * 14
    assert not any(role == "reference" for role, _ in parts)


def test_an_adapter_is_all_that_is_trained(tmp_path: Path) -> None:
    parts = estimated(tmp_path, "model.lora={rank: 2, targets: [q_proj, down_proj]}")
    adapter = 2 * (8 + 8) + 2 * (16 + 8)
    assert parts["learner", "master weights"] == 4 * adapter
    assert parts["learner", "adamw states"] == 8 * adapter
    assert parts["learner", "the weights under the adapter"] == 4 * (112 + 280 + 384 + 24)
    assert parts["weight store", "newest and next weights"] == 8 * adapter


def test_settings_move_the_estimate(tmp_path: Path) -> None:
    plain = estimated(tmp_path)
    half = estimated(tmp_path, "model.dtype=bfloat16")
    assert half["learner", "working weights"] * 2 == plain["learner", "master weights"]
    assert half["rollout", "keys and values"] * 2 == plain["rollout", "keys and values"]
    sgd = estimated(tmp_path, "learner.optimizer=sgd")
    assert sgd["learner", "sgd states"] == 0
    muon = estimated(tmp_path, "learner.optimizer=muon")
    # One number of each in a layer's matrices, two of all others
    assert muon["learner", "muon states"] == 4 * (4 * 8 * 8 + 3 * 8 * 16) + 8 * (112 + 24 + 24)
    stale = estimated(tmp_path, "rollout.max_staleness=1", "checkpoint.every_steps=1")
    group = 4 * 8 * 13 * 8
    assert stale["object store", "groups until a checkpoint covers them"] == group * 3
    with_kl = estimated(tmp_path, "stages.rl.algorithm.kl.coef=1")
    assert with_kl["reference", "weights"] == plain["rollout", "weights"]
    ppo = estimated(tmp_path, "stages.rl.algorithm=ppo")
    # As many parameters as the policy has, whose head is its embeddings, and a head with a bias.
    count = plain["learner", "master weights"] // 4 + 8 + 1
    assert ppo["learner", "critic: weights, gradient, optimizer states"] == 16 * count
    reward = estimated(tmp_path, "stages.rl.algorithm=reward_model")
    assert reward["learner", "reward model: weights, gradient, optimizer states"] == 16 * (
        count - 1
    )
    prime = estimated(tmp_path, "stages.rl.algorithm=prime")
    beside = {what: size for (_, what), size in prime.items() if what.startswith("implicit")}
    # It has the policy's parameters, and takes turns with it
    assert beside == {
        "implicit reward model: weights, gradient, optimizer states": 16 * (count - 8 - 1)
    }
    shared = estimated(tmp_path, "stages.rl.algorithm={name: ppo, critic: {model: shared}}")
    assert not any(what.startswith("critic") for _, what in shared)
    simulated = estimated(tmp_path, "rollout.engine=simulated")
    assert not any(role == "rollout" for role, _ in simulated)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "no memory formula for the architecture 'mamba' of model"),
        ({"model_type": "llama", "attention_bias": True}, "the architecture 'llama with biases'"),
        ({"model_type": "llama"}, "has no whole number 'num_attention_heads'"),
    ],
)
def test_a_model_that_is_not_understood_is_told(
    tmp_path: Path, config: object, message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        model_sizes(ModelSpec(path=str(tmp_path)), 10)


def test_a_folder_without_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        model_sizes(ModelSpec(path=str(tmp_path)), 10)


def test_a_vllm_engine_on_a_cpu_is_counted_with_its_processes(tmp_path: Path) -> None:
    run_file = load(tmp_path, "rollout.engine=vllm", "rollout.vllm.kv_cache_gib=0.5")
    parts = {p.what: p.bytes for p in memory.estimate(run_file, survey.look(run_file))
             if p.role == "rollout"}  # fmt: skip
    assert parts["keys and values"] == 1 << 29
    assert parts["vLLM's processes"] == 3 * memory.VLLM_PROCESS_BYTES
