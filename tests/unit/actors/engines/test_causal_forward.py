from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from manta.actors.engines.causal_forward import check_attention


def test_a_sliding_window_within_the_context_is_refused() -> None:
    config = AutoConfig.for_model(
        "mistral",
        vocab_size=31,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=8,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="window 8"):
        check_attention(model, 9)
    check_attention(model, 8)
