"""What a rollout engine is told (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

WhenTooOld: TypeAlias = Literal["wait", "drop_and_replace", "mask_tokens"]


@dataclass(frozen=True, slots=True)
class SimulatedSettings:
    """The simulated engine's token clock and length distribution (lognormal, in tokens)."""

    tokens_per_second: float = 1000.0
    length_median: float = 64.0
    length_sigma: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`rollout:` in a run file: the engine named `policy`.

    `max_rows` bounds the samples decoded side by side in one engine; `threads` are torch threads
    of each worker (0: all cores that it may use). With `ignore_eos` the end token ends nothing:
    every sample has exactly its budget of tokens.

    An engine holds at most `queue_rows` (default: a quarter of `max_rows`) beyond `max_rows`;
    what is more waits in the router. With `adaptive_rows` that bound follows the engine's speed.
    A call that takes longer is looked at every `progress_seconds`: what it has made by then is
    kept where the engine is lost.

    `max_staleness` is how many steps groups are made ahead, and so how many the weights that
    sample may be behind. A token is too old `max_token_age` steps behind (None: `max_staleness`,
    which nothing exceeds), `when_too_old` says what then. `oversample` times the groups of a
    synchronous step are begun, and the first to finish train. `dispatch` is who of the groups that
    are admitted together starts first.
    """

    engine: Literal["embedded", "simulated"] = "embedded"
    workers: int = 1
    threads: int = 0
    max_rows: int = 256
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_staleness: int = 0
    max_token_age: int | None = None
    when_too_old: WhenTooOld = "wait"
    oversample: float = 1.0
    dispatch: Literal["in_order", "longest_first"] = "in_order"
    ignore_eos: bool = False
    queue_rows: int | None = None
    adaptive_rows: bool = False
    progress_seconds: float = 5.0
    simulated: SimulatedSettings = field(default_factory=SimulatedSettings)

    @property
    def rows_ahead(self) -> int:
        """Rows that an engine may hold beyond those it decodes; also the rows of one call."""
        return max(1, self.max_rows // 4) if self.queue_rows is None else self.queue_rows
