"""The order in which a run meets its tasks, and where in it a run stands.

Owns epochs and positions. Which groups are outstanding there is the ledger's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from manta.envs.sources.shuffle import Shuffle


class EpochOrder:
    """Which task index stands at (epoch, position): each epoch goes through all of 0..length-1.

    With `shuffle`, each epoch has a permutation of its own that `seed` decides; without, the order
    of the source. Any place can be asked for at any time, at no cost in memory.
    Raises ValueError for an empty source.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        if length < 1:
            raise ValueError("a task source without tasks has no order: check the env's data")
        self.length = length
        self.seed = seed
        self.shuffle = shuffle

    def begin(self, epoch: int) -> None:
        """Nothing has to be known before an epoch begins."""

    def num_places(self, epoch: int) -> int:
        """How many tasks `epoch` goes through."""
        return self.length

    def index(self, epoch: int, position: int) -> int:
        """IndexError where `position` is not in 0..length-1."""
        if not self.shuffle:
            return range(self.length)[position]
        return _epoch(self.length, self.seed, epoch)[position]


@lru_cache(maxsize=8)
def _epoch(length: int, seed: int, epoch: int) -> Shuffle:
    return Shuffle(length, f"epoch/{seed}/{epoch}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next place to admit."""

    epoch: int = 0
    position: int = 0

    def advance(self, length: int) -> Cursor:
        """The place after this one in a source of `length` tasks."""
        if self.position + 1 < length:
            return Cursor(self.epoch, self.position + 1)
        return Cursor(self.epoch + 1, 0)

    def state(self) -> dict[str, int]:
        """For a checkpoint, as JSON."""
        return {"epoch": self.epoch, "position": self.position}

    @staticmethod
    def from_state(state: Mapping[str, int]) -> Cursor:
        return Cursor(state["epoch"], state["position"])
