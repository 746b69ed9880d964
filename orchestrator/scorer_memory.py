"""How much memory the workers of scorers need, by the formulas of `manta.orchestrator.memory`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from manta.actors.models.spec import ModelSpec
from manta.actors.scorers.settings import ScorerConfig
from manta.orchestrator import memory
from manta.orchestrator.config import RunFile
from manta.orchestrator.memory import Part
from manta.orchestrator.model_sizes import model_sizes, num_parameters
from manta.orchestrator.scorers import called_in, role


def scorer_parts(run_file: RunFile, vocab_size: int) -> Iterator[Part]:
    """What each worker of each scorer holds at most: a trunk, a head of one row or a whole one, and
    the activations of a layer. What a stage leaves is as large as the policy.

    Raises ValueError where a model's sizes cannot be found.
    """
    for name in called_in(run_file):
        scorer = run_file.scorers[name]
        sizes = model_sizes(_spec(run_file, scorer), vocab_size)
        element = 4 if scorer.dtype == "float32" else 2
        parameters = num_parameters(sizes)
        if scorer.kind == "reward_model":
            parameters = num_parameters(replace(sizes, tied=True)) + sizes.width
        tokens = max(scorer.tokens_per_batch, run_file.model.context)
        layer = memory.saved_for_backward(sizes, tokens, element) // sizes.layers
        yield Part(role(name), "process", memory.PROCESS_BYTES)
        yield Part(role(name), "weights", element * parameters)
        yield Part(role(name), "one layer's activations", layer)
        if scorer.kind == "logprobs":
            yield Part(role(name), "logits of a chunk", memory.logits_of_chunk(sizes, tokens))


def _spec(run_file: RunFile, scorer: ScorerConfig) -> ModelSpec:
    if scorer.is_product:
        return run_file.model
    return ModelSpec(path=scorer.model)
