"""What a rollout engine is told (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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
    ignore_eos: bool = False
    queue_rows: int | None = None
    adaptive_rows: bool = False
    progress_seconds: float = 5.0
    simulated: SimulatedSettings = field(default_factory=SimulatedSettings)

    @property
    def rows_ahead(self) -> int:
        """Rows that an engine may hold beyond those it decodes; also the rows of one call."""
        return max(1, self.max_rows // 4) if self.queue_rows is None else self.queue_rows
