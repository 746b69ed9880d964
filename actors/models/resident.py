"""What stands in the learner's graph beside the policy: a module that answers wants of its own.

The critic (`manta.actors.models.critic`) is one, reward models others. How a resident is stepped is
the backend's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from manta.actors.backends.protocol import Want
from manta.actors.rows import Row


class ResidentModule(nn.Module, ABC):
    @abstractmethod
    def statistics(
        self,
        rows: Sequence[Row],
        wants: Sequence[Want],
        temperature: float,
        hidden: Callable[[], Tensor],
    ) -> dict[str, Tensor]:
        """float32[T] for each of `wants` that is this resident's, over the trained tokens of `rows`
        in row order, with gradients. `hidden` gives the policy's states [T, D] that these tokens
        are predicted from; they are computed once, by the first who asks."""
        ...
