"""The sender's end on the learner: remembers what it handed over last and says how to send more.

Owns nothing but that memory, one copy of the weights. The delta is made here, once, for the weight
store and for every engine.
"""

from __future__ import annotations

from manta.actors.transports.delta import difference
from manta.actors.transports.protocol import Content
from manta.actors.weights import Weights


class Outbox:
    def __init__(self) -> None:
        self._last: Weights | None = None

    def content(self, weights: Weights) -> Content:
        """The delta since the weights of the last call, or `weights` themselves: the first time,
        and where a delta would save too little."""
        last, self._last = self._last, weights
        delta = None if last is None else difference(last, weights)
        return weights if delta is None else delta
