"""The critic: the value of the state in which each trained token was chosen.

Owns its construction and its evaluation. What values are good for is `manta.algorithms`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from manta.actors.backends.protocol import Want
from manta.actors.models.policy import hidden_states
from manta.actors.models.resident import ResidentModule
from manta.actors.models.spec import ModelSpec
from manta.actors.models.trunk import own_trunk, width
from manta.actors.rows import Row
from manta.algorithms.part_settings import CriticSettings


class Critic(ResidentModule):
    """A linear head, in float32, on the states of `body`, or on the policy's where that is None.

    The head starts at 0, so that every value does: before it has learnt anything a critic changes
    no advantage.
    """

    def __init__(self, width: int, body: nn.Module | None) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def statistics(
        self,
        rows: Sequence[Row],
        wants: Sequence[Want],
        temperature: float,
        hidden: Callable[[], Tensor],
    ) -> dict[str, Tensor]:
        """`value`: before each trained token, of what was seen up to then."""
        if "value" not in wants:
            return {}
        states_TD = hidden() if self.body is None else hidden_states(self.body, rows)[0]
        # Values are regressed to a few digits: no lower precision, whatever the trunk computes in
        with torch.autocast(states_TD.device.type, enabled=False):
            value_T: Tensor = self.head(states_TD.float())[:, 0]
        return {"value": value_T}


def build_critic(
    settings: CriticSettings, spec: ModelSpec, vocab_size: int, policy: nn.Module
) -> Critic:
    """The critic of `policy`, a model of `spec`, as it is now.

    Raises ValueError where the model at `settings.path` does not go with the tokenizer.
    """
    device = next(policy.parameters()).device
    if settings.model == "shared":
        return Critic(width(policy), None).to(device)
    body = own_trunk(settings.path, spec, vocab_size, policy)
    return Critic(width(body), body).to(device)
