"""The learner-backend seam: who holds parameters and optimizer state.

One contract test (`tests/contract/test_backend.py`) holds every backend to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from manta.actors.rows import Row
from manta.actors.weights import Weights
from manta.algorithms.tokens import LossTerms
from manta.envs.records import WeightVersion

POLICY = "policy"
"""The policy's name among the modules that are trained."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The want `top_k`: log-probs of the `number` likeliest words, the likeliest first, float32
    [T, number] instead of [T]."""

    number: int

    def __str__(self) -> str:
        return "top_k"


Want: TypeAlias = (
    Literal[
        "logprob",
        "entropy",
        "logsumexp",
        "vocab_mean",
        "top_ids",
        "top_rest",
        "likeliest",
        "value",
        "score",
        "process_logprob",
    ]
    | TopK
)
"""Statistics of each trained token and its distribution softmax(z), z = logits / temperature:
`logprob` of the token, `entropy` in nats, `logsumexp` of z, all three with gradients; `vocab_mean`,
the mean of z over the vocabulary, and `TopK` without; of the latter's words `top_ids`, int32
[T, number], are the ids, and `top_rest` is the log-prob of all others together. `likeliest`,
float32 [T, k + 1], are the log-probs of the words that the row's reference found likely
(`Row.likeliest`), and last of all others together, with gradients. `value` is a critic's, `score` a
reward model's, see `HoldsResidents`; a score is of a whole row, so it stands at the row's last
trained token, with 0 at the others: summed over its tokens it is the row's, as log-probs are.
`process_logprob` is an implicit reward model's `logprob`. Results are named `str(want)`.
"""

Loss: TypeAlias = Callable[[Sequence[Row], Mapping[str, Tensor]], LossTerms]
"""From a micro-batch's rows and their flat per-trained-token statistics to its share of the loss
(already divided by global denominators)."""


class Backend(Protocol):
    def evaluate(
        self, rows: Sequence[Row], wants: Sequence[Want], temperature: float
    ) -> dict[str, Tensor]:
        """One tensor per want, over the rows' trained tokens in row order, without gradients."""
        ...

    def update(
        self,
        micro_batches: Iterable[Sequence[Row]],
        wants: Sequence[Want],
        temperature: float,
        loss: Loss,
        learning_rate: float,
    ) -> dict[str, float]:
        """One optimizer update: gradients of all micro-batches and ranks are summed, clipped by
        global norm and applied. Returns the summed `sums`, the maxima, `grad_norm`, `loss`.

        A non-finite gradient norm skips the update and is reported as `skipped_updates` = 1.
        """
        ...

    def weights(self, version: WeightVersion) -> Weights: ...

    def save(self, folder: Path) -> None:
        """Writes parameters and optimizer state below `folder` (safetensors and JSON). Called while
        nothing else happens, unless the backend also is a `Snapshots`: on rank 0 alone, or on every
        rank where it is a `Sharded`. What all of them have written in their folders makes one."""
        ...

    def load(self, folder: Path) -> None: ...


@runtime_checkable
class Snapshots(Protocol):
    """A backend whose state is written while it goes on."""

    def snapshot(self) -> Callable[[Path], None]:
        """Copies this rank's share of what `save` writes to host memory. The result writes it below
        a folder, from any thread; the shares of all ranks in one folder are what `load` reads, on
        any number of ranks. Every rank must call it.
        """
        ...


@runtime_checkable
class TakesParameters(Protocol):
    """A backend that can be given other parameters."""

    def take(self, parameters: Mapping[str, Tensor]) -> None:
        """The policy's become `parameters`, whole tensors in host memory; the optimizer's state is
        without meaning afterwards. Every rank must call it.

        Raises ValueError naming the first tensor of another model; nothing is changed then.
        """
        ...


@runtime_checkable
class HoldsResidents(Protocol):
    """A backend that trains named modules beside the policy (`manta.actors.models.resident`), each
    with an optimizer of its own.

    Its class is called with one more value, `residents` (`manta.actors.backends.residents`).
    `evaluate` answers their wants too. `weights` are the policy's alone, and so is what `save` puts
    among parameters; what it keeps of residents is beside the optimizer's state, under names that
    begin with theirs.
    """

    def update_each(
        self,
        micro_batches: Iterable[Sequence[Row]],
        wants: Sequence[Want],
        temperature: float,
        loss: Loss,
        learning_rates: Mapping[str, float],
    ) -> dict[str, float]:
        """As `Backend.update`, of the modules that `learning_rates` names; the policy is `policy`.

        The others, and their optimizers' states, stay as they are to the bit, and nothing is
        computed for their gradients. Norms are clipped module by module; a resident's is reported
        as `NAME/grad_norm`. One that is not finite skips the update of all.
        """
        ...


@runtime_checkable
class Sharded(Protocol):
    """A backend of which no rank alone has all parameters: every rank must call `evaluate`,
    `update` and `save`, also those without rows; and `weights`, or else `lend_shards`."""

    def lend_shards(self) -> None:
        """What a rank calls that does not want the weights, while others call `weights`."""
        ...


@runtime_checkable
class Offloads(Protocol):
    """A backend that can leave the device to engines between two steps."""

    def offload(self) -> None:
        """Frees what no engine's turn needs: gradients are dropped, optimizer state waits in host
        memory. Parameters and master weights stay. `evaluate`, `weights`, `save` and `load` work
        on; `update` raises RuntimeError until `restore`. On a CPU the optimizer state stays where
        it is: that is host memory already.
        """
        ...

    def restore(self) -> None:
        """Takes the memory back: what is learnt next is what would have been without `offload`, to
        the bit. Does nothing where nothing is offloaded."""
        ...

    def held_bytes(self) -> int:
        """Of what `offload` frees, how many bytes are on the device."""
        ...
