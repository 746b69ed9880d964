"""Keys of an algorithm's block in a run file that have no effect, whatever their value.

What a value means is `manta.algorithms.contradictions`'; it cannot tell a default that somebody
wrote from one that nobody did. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from manta.algorithms.catalogue import OPTIONAL, readers
from manta.algorithms.settings import COUPLED_LOSSES

_IN_A_COPY = {"samples_from", "advantage", "loss", "aggregation", "kl", "off_policy", "filters"}
"""A block with all of these is what a run keeps of its settings, which names every key."""


class Chosen(NamedTuple):
    """What a block says once its preset is laid under it."""

    advantage: object
    loss: object
    aggregation: object


def without_effect(written: Collection[str], chosen: Chosen) -> Iterator[tuple[str, str]]:
    """(key, why) of those `written` that nothing reads."""
    if set(written) >= _IN_A_COPY:
        return
    for key in written:
        if key in OPTIONAL:
            what, by = readers(key)
            value = getattr(chosen, what)
            if value not in by:
                yield key, f"{what} is {value}, which does not read it"
        elif key == "aggregation" and chosen.loss in COUPLED_LOSSES:
            yield key, f"loss is {chosen.loss}, which is a mean over its units"
        elif key == "constant_length" and chosen.aggregation != "sequence_sum_constant":
            yield (
                key,
                f"aggregation is {chosen.aggregation}, which does not divide by it",
            )
