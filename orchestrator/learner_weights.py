"""The weights of a checkpoint, as engines and reference workers take them."""

from __future__ import annotations

from manta.actors.backends.state_files import read_weights
from manta.actors.weights import Weights
from manta.envs.records import WeightVersion
from manta.orchestrator.checkpoint import Checkpoint


def learner_weights(checkpoint: Checkpoint) -> Weights:
    """Raises ValueError where the checkpoint has none, or they cannot be read."""
    state = checkpoint.state
    if checkpoint.learner is None:
        raise ValueError(f"{checkpoint.folder} holds no weights: no learner took part in its stage")
    with checkpoint.learner.here() as folder:
        return read_weights(folder, WeightVersion(state.step, state.incarnation))
