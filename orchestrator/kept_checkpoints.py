"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Container, Iterable

from manta.orchestrator.run_state import RunState


def kept(
    states: Iterable[RunState], keep: int, keep_best: int, named: Container[int] = ()
) -> set[int]:
    """The steps of those among `states` that stay: all that end a stage, those `named`, the newest
    `keep` of the others, and the `keep_best` of the highest score, whichever they are. Of equal
    scores the newer one is better; one without a score is never among the best."""
    newest_first = sorted(states, key=lambda state: state.step, reverse=True)
    stays = {state.step for state in newest_first if state.ends_stage or state.step in named}
    passing = [state.step for state in newest_first if state.step not in stays]
    # sorted keeps the order of equal ones
    scored = sorted(
        (state for state in newest_first if state.score is not None),
        key=lambda state: state.score or 0.0,
        reverse=True,
    )
    return stays | set(passing[:keep]) | {state.step for state in scored[:keep_best]}
