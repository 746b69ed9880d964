"""The implicit process reward model: a causal language model of its own beside the policy.

Owns its construction and its evaluation. What its log-probs are good for is
`manta.algorithms.implicit_reward`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from manta.actors.backends.protocol import Want
from manta.actors.models.policy import evaluate
from manta.actors.models.resident import ResidentModule
from manta.actors.models.spec import ModelSpec
from manta.actors.models.trunk import own_model
from manta.actors.rows import Row
from manta.algorithms.part_settings import ImplicitRewardSettings


class ImplicitReward(ResidentModule):
    """`body` is a whole model, with its head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def statistics(
        self,
        rows: Sequence[Row],
        wants: Sequence[Want],
        temperature: float,
        hidden: Callable[[], Tensor],
    ) -> dict[str, Tensor]:
        """`process_logprob`: the log-prob of each trained token, at the policy's temperature."""
        if "process_logprob" not in wants:
            return {}
        found = evaluate(self.body, rows, ("logprob",), temperature)
        return {"process_logprob": found["logprob"]}


def build_implicit_reward(
    settings: ImplicitRewardSettings, spec: ModelSpec, vocab_size: int, policy: nn.Module
) -> ImplicitReward:
    """The implicit reward model that a stage starts with, beside `policy`, a model of `spec`.

    Raises ValueError where the model at `settings.path` does not go with the tokenizer.
    """
    body = own_model(settings.path, spec, vocab_size, policy)
    return ImplicitReward(body).to(next(policy.parameters()).device)
