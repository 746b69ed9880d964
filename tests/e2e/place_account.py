"""What became of every place of a stage's tasks: none is lost, and none is taken twice.

A checkpoint says how far the feed is and which groups are outstanding; the ledger, up to where the
checkpoint counted it, what became of the others. Together they are all places that were begun.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from manta.actors.production import build_production, unscored
from manta.envs.group import Scoring
from manta.envs.records import Completion, GenerateRequest
from manta.orchestrator.checkpoint import Checkpoints
from manta.orchestrator.config import RunFile
from manta.orchestrator.feed import FeedState
from manta.orchestrator.lanes import annotate_lane, train_lane
from manta.orchestrator.ledger import DELIBERATE, Entry, read_ledger
from manta.orchestrator.products import Products
from manta.orchestrator.run_directory import RunDirectory
from manta.orchestrator.run_file import load
from manta.orchestrator.run_state import RunState

Place: TypeAlias = tuple[int, int]
"""Epoch and position of a task, whatever the attempt."""
MOST_TOLD = 8


def check_places(run_dir: Path) -> None:
    """At every checkpoint that there is, and at the run's end, every place has one outcome."""
    entries = read_ledger(run_dir / "ledger.jsonl")
    run_file = load(run_dir / "config.yaml", [])
    covered = 0
    for state in states(run_dir):
        if state.feed is None:
            continue
        covered = entries_within(run_dir / "ledger.jsonl", state.ledger_position)
        of_stage = [entry for entry in entries[:covered] if entry.stage == state.stage]
        tasks = num_tasks(run_file, state.stage, Products(run_dir))
        found = problems(of_stage, state.feed, tasks)
        assert not found, f"{run_dir}, checkpoint {state.step}: " + told(found)
    rest = [f"{entry.stage} {entry.group} {entry.outcome}" for entry in entries[covered:]]
    assert not rest, f"{run_dir}: entries that no checkpoint covers: " + told(rest)


def problems(
    entries: Sequence[Entry], state: FeedState, tasks: int, given_up_after: int | None = None
) -> list[str]:
    """Of a stage over so many `tasks`, with a feed in `state` and these `entries` by then.

    A place has attempts 0, 1, 2, ... in the ledger's order. All but the last one are dropped; the
    last one is settled for good or outstanding, or, where groups may be given up, dropped once the
    place broke so often.
    """
    attempts: dict[Place, list[tuple[int, str]]] = defaultdict(list)
    breaks: Counter[Place] = Counter()
    for entry in entries:
        attempts[entry.group[:2]].append((entry.group.attempt, entry.outcome))
        is_deliberate = entry.reason.startswith(DELIBERATE)
        breaks[entry.group[:2]] += entry.outcome == "dropped" and not is_deliberate
    for group in state.outstanding:
        attempts[group[:2]].append((group.attempt, "outstanding"))
    begun = set(places_begun(state, tasks))
    found = [f"{place} has no outcome" for place in sorted(begun - attempts.keys())]
    found += [f"{place} was not admitted yet" for place in sorted(attempts.keys() - begun)]
    for place, history in sorted(attempts.items()):
        outcomes = [outcome for _, outcome in history]
        is_given_up = given_up_after is not None and breaks[place] >= given_up_after
        if [number for number, _ in history] != list(range(len(history))):
            found.append(f"{place} has other attempts than one after the other: {history}")
        elif set(outcomes[:-1]) - {"dropped"}:
            found.append(f"{place} went on after its outcome: {history}")
        elif outcomes[-1] == "dropped" and not is_given_up:
            found.append(f"{place} was dropped and not admitted again: {history}")
    return found


def places_begun(state: FeedState, tasks: int) -> Iterator[Place]:
    """All places of the epochs before the feed's, and of that one those before its position, and
    those that the curriculum left out as the epoch began."""
    for epoch in range(state.epoch):
        yield from ((epoch, position) for position in range(tasks))
    orders = () if state.curriculum is None else state.curriculum.orders
    taken = {order.epoch: order.num_taken for order in orders}.get(state.epoch, tasks)
    positions = (*range(state.position), *range(taken, tasks))
    yield from ((state.epoch, position) for position in positions)


def states(run_dir: Path) -> list[RunState]:
    """What the checkpoints that there are say, in the order of their steps."""
    checkpoints = Checkpoints(RunDirectory(run_dir).checkpoints_at(), keep=1)
    return [checkpoints.at_step(step).state for step in checkpoints.steps()]


def entries_within(ledger: Path, num_bytes: int) -> int:
    return ledger.read_bytes()[:num_bytes].count(b"\n")


def num_tasks(run_file: RunFile, name: str, products: Products) -> int:
    """How many tasks an epoch of the stage `name` has."""
    stage = next(stage for stage in run_file.stages if stage.name == name)
    make_lane = annotate_lane if stage.kind == "annotate" else train_lane
    lane = make_lane(run_file, stage, products)
    tokenizer = run_file.model.tokenizer or run_file.model.path or ""
    return build_production(lane, tokenizer, nothing, Scoring(unscored)).num_tasks


async def nothing(requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
    raise AssertionError("only the tasks are counted")


def told(found: Sequence[str]) -> str:
    more = f"; {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
    return "; ".join(found[:MOST_TOLD]) + more
