"""A reference that follows the policy: a log-prob scorer whose weights are renewed as it trains.

Owns the moving average, in float32, the name of what scores, and both as a file of a checkpoint.
When it is renewed is the driver's decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from manta.actors.models.causal import load_state, model_state
from manta.actors.scorers.logprob import LogprobScorer
from manta.actors.weight_tensors import pack, refuse_mismatch, stream_hash, unpack
from manta.actors.weights import Receipt, Weights, content_hash, label
from manta.envs.records import ReferenceStatistics, Trajectory, WeightVersion

REFERENCE_FILE = "reference.safetensors"


@dataclass(frozen=True, slots=True)
class ReferenceState:
    """A reference as one worker hands it to another: its weights or, with `is_average`, the moving
    average in float32, and its name and hash."""

    weights: Weights
    named: tuple[str, str]
    is_average: bool


class FollowingScorer:
    """Scores with the weights that it has been given, or with an average of these and later ones.

    A version is a name and the start of a hash, `NAME#1a2b3c4d`: of the weights, or, for a moving
    average, of all that has gone into it (each renewal hashes the one before, the policy's hash and
    the decay), which says as much without reading the average again.
    """

    def __init__(self, model: nn.Module, tokens_per_batch: int, temperature: float = 1.0) -> None:
        self._model = model
        self._scorer = LogprobScorer(model, "", tokens_per_batch, temperature)
        self._average: dict[str, Tensor] | None = None
        self._name(("initial", stream_hash(sorted(model_state(model).items()))))

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def version(self) -> str:
        return label(*self._named)

    def score(self, trajectories: Sequence[Trajectory], top_k: int = 0) -> ReferenceStatistics:
        """See `manta.actors.scorers.logprob.score_with`."""
        return self._scorer.score(trajectories, top_k)

    def load(self, weights: Weights, name: str) -> Receipt:
        """Scores with `weights`, called `name`, from now on.

        Raises ValueError where they are another model's.
        """
        load_state(self._model, unpack(weights))
        self._average = None
        sha256 = content_hash(weights.specs, weights.data)
        self._name((name, sha256))
        return Receipt(weights.version, sha256)

    def follow(self, weights: Weights, name: str, decay: float | None) -> None:
        """Scores, as `name`, with the policy's `weights`, whose hash has been verified; with a
        `decay` with decay * what it scored with so far + (1 - decay) * `weights`, in float32."""
        if decay is None:
            self.load(weights, name)
            return
        policy = unpack(weights)
        with torch.no_grad():
            if self._average is None:
                self._average = {
                    key: tensor.to(torch.float32, copy=True)
                    for key, tensor in model_state(self._model).items()
                }
            refuse_mismatch(self._average, policy)
            for key, average in self._average.items():
                average.lerp_(policy[key].to(average), 1 - decay)
            load_state(self._model, self._average)
        chained = f"{self._named[1]}/{weights.sha256}/{decay!r}"
        self._name((name, hashlib.sha256(chained.encode()).hexdigest()))

    def snapshot(self) -> Callable[[Path], None]:
        """What it scores with now, whatever comes meanwhile: the result writes it below a folder,
        from any thread."""
        is_average = self._average is not None
        state = self._average if self._average is not None else model_state(self._model)
        copy = {key: tensor.detach().cpu().clone() for key, tensor in state.items()}
        name, sha256 = self._named
        metadata = {"name": name, "sha256": sha256, "is_average": str(is_average)}
        return partial(_write, copy, metadata)

    def state(self) -> ReferenceState:
        """What it scores with now, for another worker."""
        is_average = self._average is not None
        state = self._average if self._average is not None else model_state(self._model)
        return ReferenceState(pack(state, WeightVersion(0, 0)), self._named, is_average)

    def adopt(self, state: ReferenceState) -> str:
        """Goes on from another worker's `state`; the version of that."""
        named = unpack(state.weights)
        load_state(self._model, named)
        self._average = named if state.is_average else None
        self._name(state.named)
        return self.version

    def restore(self, folder: Path) -> str:
        """Goes on from what a `snapshot` wrote; the version of that.

        Raises ValueError where it cannot be read, or is another model's.
        """
        path = folder / REFERENCE_FILE
        try:
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata: Mapping[str, str] = file.metadata()
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"cannot read {path} ({error}): the checkpoint is incomplete; resume from another"
            ) from error
        load_state(self._model, state)
        self._average = state if metadata["is_average"] == str(True) else None
        self._name((metadata["name"], metadata["sha256"]))
        return self.version

    def _name(self, named: tuple[str, str]) -> None:
        self._named = named
        self._scorer.version = label(*named)


def _write(state: Mapping[str, Tensor], metadata: dict[str, str], folder: Path) -> None:
    try:
        save_file(dict(state), folder / REFERENCE_FILE, metadata)
    except SafetensorError as error:  # what it says of a full disk
        raise OSError(f"{REFERENCE_FILE}: {error}") from error
