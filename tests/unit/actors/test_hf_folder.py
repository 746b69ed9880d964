"""What is written without transformers is what transformers reads as the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from manta.actors.models.causal import build_model, model_state
from manta.actors.models.hf_folder import write_built
from manta.actors.models.spec import BuildSpec, ModelSpec

SIZES = BuildSpec(layers=2, width=16, heads=4, mlp_width=24, kv_heads=2)
OF_THE_FILE = ("_name_or_path", "transformers_version", "architectures", "dtype")


@pytest.mark.parametrize(
    ("architecture", "tied", "dtype"),
    [("qwen2", True, "float32"), ("llama", False, "bfloat16")],
)
def test_the_same_model_and_config_come_back(
    tmp_path: Path, architecture: str, tied: bool, dtype: str
) -> None:
    sizes = replace(SIZES, architecture=architecture, tie_embeddings=tied)  # type: ignore[arg-type]
    spec = ModelSpec(build=sizes, context=48, dtype=dtype)  # type: ignore[arg-type]
    model = build_model(spec, 11, seed=3)
    masters = {name: tensor.float() for name, tensor in model_state(model).items()}
    write_built(spec, 11, masters, tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert found.dtype == getattr(torch, dtype)
    own = model_state(model)
    assert model_state(found).keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model_state(found).items())
    wanted, config = model.config.to_dict(), AutoConfig.from_pretrained(tmp_path).to_dict()
    for key in OF_THE_FILE:
        wanted.pop(key, None), config.pop(key, None)
    assert config == wanted
