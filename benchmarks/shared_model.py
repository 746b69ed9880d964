"""The model and the tokenizer that both sides of a comparison load, as one Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.pinned_lengths import VOCABULARY, WORDS
from manta.actors.models.causal import build_model
from manta.actors.models.spec import BuildSpec, ModelSpec

SPEC = ModelSpec(
    build=BuildSpec(layers=4, width=256, heads=4, mlp_width=704, tie_embeddings=False),
    context=512,
)
PAD, EOS = "<pad>", "<eos>"


def save_shared_model(folder: Path, seed: int) -> int:
    """Writes a qwen2 with initial weights of `seed` and its tokenizer of single words; returns the
    number of parameters."""
    model = build_model(SPEC, VOCABULARY, seed)
    model.save_pretrained(folder)  # type: ignore[operator]
    vocabulary = {f"w{word}": word for word in range(WORDS)} | {PAD: WORDS, EOS: WORDS + 1}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=EOS, pad_token=PAD).save_pretrained(
        folder
    )
    return sum(parameter.numel() for parameter in model.parameters())
