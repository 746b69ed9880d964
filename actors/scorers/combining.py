"""The reference of a run: one model, which may follow the policy, or a combination of several.

Owns the further models of a combination, which are there as long as it scores, and its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from manta.actors.models.causal import load_state, model_state
from manta.actors.models.combined import evaluate_combined
from manta.actors.scorers.following import FollowingScorer, ReferenceState
from manta.actors.scorers.logprob import score_with
from manta.actors.scorers.settings import Combination
from manta.actors.weight_tensors import pack, unpack
from manta.actors.weights import Receipt, Weights, content_hash, label
from manta.envs.records import ReferenceStatistics, Trajectory, WeightVersion


@dataclass(frozen=True, slots=True)
class CombinedState:
    """A combination as one worker hands it to another: the weights of its models in the order of
    its names, and its version."""

    combination: Combination
    weights: tuple[Weights, ...]
    version: str


@dataclass(frozen=True, slots=True)
class _Combined:
    combination: Combination
    models: Mapping[str, nn.Module]
    version: str


class CombiningScorer:
    """Scores with one model (`FollowingScorer`) or, after `combine`, with several at once. `build`
    makes a model of the run.

    A combination's version is what it is made of and the start of a hash over that and the hashes
    of all weights.
    """

    def __init__(
        self, build: Callable[[], nn.Module], tokens_per_batch: int, temperature: float = 1.0
    ) -> None:
        self._build = build
        self._single = FollowingScorer(build(), tokens_per_batch, temperature)
        self._bounds = (tokens_per_batch, temperature)
        self._combined: _Combined | None = None

    @property
    def version(self) -> str:
        return self._single.version if self._combined is None else self._combined.version

    def score(self, trajectories: Sequence[Trajectory], top_k: int = 0) -> ReferenceStatistics:
        """See `manta.actors.scorers.logprob.score_with`."""
        told = self._combined
        if told is None:
            return self._single.score(trajectories, top_k)
        evaluate = partial(evaluate_combined, told.models, told.combination)
        return score_with(evaluate, told.version, trajectories, top_k, *self._bounds)

    def combine(self, combination: Combination, weights: Sequence[Weights]) -> tuple[Receipt, ...]:
        """Scores with `combination` from now on, of whose names `weights` are.

        Raises ValueError where some are another model's; nothing is changed then.
        """
        name, *others = combination.names
        models = {}
        for other, each in zip(others, weights[1:], strict=True):
            models[other] = self._build().requires_grad_(False)
            load_state(models[other], unpack(each))
        self._single.load(weights[0], name)
        hashes = [content_hash(each.specs, each.data) for each in weights]
        digest = hashlib.sha256(f"{combination!r}/{'/'.join(hashes)}".encode()).hexdigest()
        models[name] = self._single.model
        self._combined = _Combined(combination, models, label(str(combination), digest))
        return tuple(Receipt(each.version, sha) for each, sha in zip(weights, hashes, strict=True))

    def load(self, weights: Weights, name: str) -> Receipt:
        """See `FollowingScorer.load`."""
        receipt = self._single.load(weights, name)
        self._combined = None
        return receipt

    def follow(self, weights: Weights, name: str, decay: float | None) -> None:
        """See `FollowingScorer.follow`; a combination stands still."""
        assert self._combined is None
        self._single.follow(weights, name, decay)

    def snapshot(self) -> Callable[[Path], None]:
        """See `FollowingScorer.snapshot`; a combination is read again by its names."""
        assert self._combined is None
        return self._single.snapshot()

    def restore(self, folder: Path) -> str:
        """See `FollowingScorer.restore`."""
        version = self._single.restore(folder)
        self._combined = None
        return version

    def state(self) -> ReferenceState | CombinedState:
        """What it scores with now, for another worker."""
        told = self._combined
        if told is None:
            return self._single.state()
        states = (model_state(told.models[name]) for name in told.combination.names)
        weights = tuple(pack(state, WeightVersion(0, 0)) for state in states)
        return CombinedState(told.combination, weights, told.version)

    def adopt(self, state: ReferenceState | CombinedState) -> str:
        """Goes on from another worker's `state`; the version of that."""
        if isinstance(state, ReferenceState):
            self._combined = None
            return self._single.adopt(state)
        self.combine(state.combination, state.weights)
        assert self._combined is not None
        self._combined = replace(self._combined, version=state.version)
        return state.version
