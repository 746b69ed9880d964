"""A model's sizes before it is loaded, and how many parameters follow from them.

They are of `build:` in the run file, or of the `config.json` of the model's folder or hub name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manta.actors.models.spec import LoraSpec, ModelSpec
from manta.envs.records import Json

_FAMILIES: Mapping[str, tuple[bool, bool]] = {
    "llama": (False, False),
    "mistral": (False, False),
    "qwen2": (True, False),
    "qwen3": (False, True),
}
"""Per `model_type`: do queries, keys and values have biases, and are queries and keys normed."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_size


def model_sizes(spec: ModelSpec, vocab_size: int) -> ModelSizes:
    """The sizes of `spec`. Raises ValueError where they cannot be found or are not understood."""
    if spec.build is not None:
        return _from_config(spec.build.config(vocab_size, spec.context), "build")
    assert spec.path is not None
    return _from_config(json.loads(_config_file(spec.path).read_text(encoding="utf-8")), spec.path)


def num_parameters(sizes: ModelSizes) -> int:
    """All parameters, tied embeddings once."""
    width, query, key = sizes.width, sizes.query_width, sizes.key_width
    attention = 2 * width * query + 2 * width * key
    biases = (query + 2 * key) if sizes.qkv_bias else 0
    norms = 2 * width + (2 * sizes.head_size if sizes.qk_norm else 0)
    layer = attention + biases + norms + 3 * width * sizes.mlp_width
    embeddings = sizes.vocabulary * width * (1 if sizes.tied else 2)
    return sizes.layers * layer + width + embeddings


def num_hidden(sizes: ModelSizes) -> int:
    """Those in the matrices of layers."""
    width, query, key = sizes.width, sizes.query_width, sizes.key_width
    layer = 2 * width * query + 2 * width * key + 3 * width * sizes.mlp_width
    return sizes.layers * layer


def num_trained(sizes: ModelSizes, lora: LoraSpec | None) -> int:
    """Parameters that are learnt and published: all, or those of an adapter."""
    if lora is None:
        return num_parameters(sizes)
    width, query, key, mlp = sizes.width, sizes.query_width, sizes.key_width, sizes.mlp_width
    sides = {
        "q_proj": width + query,
        "k_proj": width + key,
        "v_proj": width + key,
        "o_proj": query + width,
        "gate_proj": width + mlp,
        "up_proj": width + mlp,
        "down_proj": mlp + width,
    }
    return sizes.layers * lora.rank * sum(sides.get(target, 0) for target in lora.targets)


def _config_file(path: str) -> Path:
    if Path(path).is_dir():
        file = Path(path) / "config.json"
        if not file.is_file():
            raise ValueError(f"model {path!r} has no config.json")
        return file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, "config.json"))
    except (OSError, ValueError) as error:
        raise ValueError(f"the config.json of model {path!r} cannot be had: {error}") from error


def _from_config(config: Mapping[str, Json], path: str) -> ModelSizes:
    family = config.get("model_type")
    has_biases = config.get("attention_bias") is True or config.get("mlp_bias") is True
    if not isinstance(family, str) or family not in _FAMILIES or has_biases:
        family = f"{family} with biases" if has_biases else family
        raise ValueError(
            f"no memory formula for the architecture {family!r} of model {path!r}; "
            f"known: {', '.join(_FAMILIES)}"
        )

    def size(name: str, default: int | None = None) -> int:
        value = config.get(name)
        value = default if value is None else value
        if not isinstance(value, int):
            raise ValueError(f"the config.json of model {path!r} has no whole number {name!r}")
        return value

    heads, width = size("num_attention_heads"), size("hidden_size")
    return ModelSizes(
        layers=size("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_size=size("head_dim", width // heads),
        mlp_width=size("intermediate_size"),
        vocabulary=size("vocab_size"),
        tied=config.get("tie_word_embeddings", False) is True,
        qkv_bias=_FAMILIES[family][0],
        qk_norm=_FAMILIES[family][1],
    )
