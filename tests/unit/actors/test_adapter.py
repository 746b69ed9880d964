"""Names and shapes of an adapter's weights."""

from __future__ import annotations

import pytest

from manta.actors.models.adapter import adapter_shapes, is_adapter
from manta.actors.models.spec import LoraSpec

MODEL = {
    "model.embed_tokens.weight": (23, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.1.mlp.down_proj.weight": (8, 12),
    "model.norm.weight": (8,),
}


def test_every_matrix_of_a_target_gets_two_small_ones_named_as_peft_names_them() -> None:
    lora = LoraSpec(rank=2, targets=("q_proj", "down_proj"))
    start = "base_model.model.model.layers"
    assert adapter_shapes(lora, MODEL) == {
        f"{start}.0.self_attn.q_proj.lora_A.weight": (2, 8),
        f"{start}.0.self_attn.q_proj.lora_B.weight": (8, 2),
        f"{start}.0.mlp.down_proj.lora_A.weight": (2, 12),
        f"{start}.0.mlp.down_proj.lora_B.weight": (8, 2),
        f"{start}.1.mlp.down_proj.lora_A.weight": (2, 12),
        f"{start}.1.mlp.down_proj.lora_B.weight": (8, 2),
    }


def test_a_target_that_is_no_matrix_of_the_model_is_told() -> None:
    message = (
        r"has no matrix called \['qproj'\]: choose from \['down_proj', 'embed_tokens', 'q_proj"
    )
    with pytest.raises(ValueError, match=message):
        adapter_shapes(LoraSpec(targets=("qproj", "down_proj")), MODEL)
    with pytest.raises(ValueError, match=r"\['norm'\]"):
        adapter_shapes(LoraSpec(targets=("norm",)), MODEL)


def test_an_adapter_is_told_from_whole_weights_by_its_names() -> None:
    names = list(adapter_shapes(LoraSpec(targets=("q_proj",)), MODEL))
    assert is_adapter(names)
    assert not is_adapter(MODEL)
    assert not is_adapter([*names, "model.norm.weight"])
    assert not is_adapter([])
