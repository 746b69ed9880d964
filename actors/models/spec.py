"""Which model a run uses, as plain values (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manta.envs.records import Json


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """A small causal language model that is built on the spot from its sizes.

    `width` is the hidden size, `mlp_width` the feed-forward size; the initial weights follow the
    run's seed.
    """

    layers: int
    width: int
    heads: int
    mlp_width: int
    kv_heads: int | None = None
    architecture: Literal["qwen2", "llama"] = "qwen2"
    tie_embeddings: bool = True

    def config(self, vocab_size: int, context: int) -> dict[str, Json]:
        """What transformers' config.json says of such a model, `context` tokens long, by its names
        there."""
        return {
            "model_type": self.architecture,
            "vocab_size": vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads or self.heads,
            "head_dim": self.width // self.heads,
            "max_position_embeddings": context,
            "tie_word_embeddings": self.tie_embeddings,
        }


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """A low-rank adapter (arXiv 2106.09685) over a model whose own weights stay as they are: every
    linear layer whose last name is in `targets` computes with W + alpha / rank * B A."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Either `path` (a Hugging Face folder or name) or `build`.

    `tokenizer` is `byte`, `char:ALPHABET`, or a path of a `tokenizer.json` or its folder; without
    it the tokenizer in `path` is used. `context` bounds prompt plus answer, in tokens. With `lora`
    what is learnt and published is an adapter.
    """

    path: str | None = None
    build: BuildSpec | None = None
    tokenizer: str | None = None
    context: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSpec | None = None
