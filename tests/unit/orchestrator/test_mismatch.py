"""The guard over the mismatch: what it says at which figures, and what the watch does about it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from manta.actors.step_work import StepReport
from manta.envs.records import Json, WeightVersion
from manta.envs.step_records import Update
from manta.orchestrator.config import MismatchGuardConfig
from manta.orchestrator.mismatch import MismatchGuard, MismatchTooLarge, MismatchWatch
from manta.orchestrator.wait import Waits

KL, GAP = "mismatch/same_version/kl", "mismatch/same_version/gap_max"
CONFIG = MismatchGuardConfig(warn_kl=1e-3, limit_kl=0.05)


def told(guard: MismatchGuard, kls: list[float]) -> list[str]:
    """Of each step: nothing, a warning, or the run's end."""
    findings = [guard.judge(step, {KL: kl, GAP: 0.5}, {}) for step, kl in enumerate(kls)]
    return ["" if f is None else "end" if f.ends_run else "warn" for f in findings]


def test_it_warns_past_one_bound_and_ends_past_the_other() -> None:
    guard = MismatchGuard(CONFIG, "embedded")
    assert told(guard, [1e-9, 1e-3, 2e-3, 0.05, 0.051]) == ["", "", "warn", "warn", "end"]


def test_a_mismatch_that_stays_is_told_again_only_once_it_has_doubled_or_been_away() -> None:
    guard = MismatchGuard(CONFIG, "embedded")
    kls = [2e-3, 3e-3, 4e-3, 5e-3, 9e-3, 1e-4, 2e-3]
    assert told(guard, kls) == ["warn", "", "", "warn", "", "", "warn"]


def test_the_limit_ends_the_run_also_where_the_mismatch_grew_slowly() -> None:
    assert told(MismatchGuard(CONFIG, "embedded"), [0.04, 0.06]) == ["warn", "end"]


def test_a_figure_that_is_no_number_is_past_the_limit() -> None:
    assert told(MismatchGuard(CONFIG, "embedded"), [math.nan]) == ["end"]
    assert told(MismatchGuard(CONFIG, "embedded"), [math.inf]) == ["end"]


def test_told_to_warn_it_never_ends_the_run() -> None:
    config = MismatchGuardConfig(action="warn")
    assert told(MismatchGuard(config, "embedded"), [0.06, 0.07, 9.0]) == ["warn", "", "warn"]


def test_stale_tokens_and_invented_log_probs_say_nothing() -> None:
    guard = MismatchGuard(CONFIG, "embedded")
    assert guard.judge(1, {"mismatch/stale/kl": 9.0, "loss": 1.0}, {}) is None
    assert told(MismatchGuard(CONFIG, "simulated"), [9.0]) == [""]


def test_the_words_say_what_how_large_and_which_engine() -> None:
    gaps = {"rollout-0": 1.2e-6, "rollout-1": 3e-4}
    finding = MismatchGuard(CONFIG, "embedded").judge(7, {KL: 0.0123, GAP: 1.5}, gaps)
    assert finding is not None
    assert finding.text == (
        "step 7: engine policy (embedded) and learner disagree under equal weights: KL 0.0123 per "
        "token (mismatch_guard.warn_kl is 0.001), log-probs up to 1.5 apart; probe gaps at the "
        "last publish: rollout-0 1.2e-06, rollout-1 0.0003"
    )
    over = MismatchGuard(CONFIG, "embedded").judge(8, {KL: 0.3, GAP: 4.0}, {})
    assert over is not None and "KL 0.3 per token (mismatch_guard.limit_kl is 0.05)" in over.text


@dataclass
class Told:
    """A recorder that keeps the events, a publisher that knows its gaps."""

    events: list[tuple[str, Mapping[str, Json], str]] = field(default_factory=list)
    gaps: Mapping[str, float] = field(default_factory=dict)

    def event(self, name: str, fields: Mapping[str, Json], text: str = "") -> None:
        self.events.append((name, fields, text))


def watch_of(
    action: str, told: Told, should_stop: asyncio.Event, deadline: float = 10.0
) -> tuple[MismatchWatch, Waits]:
    waits = Waits()
    config = MismatchGuardConfig(action=action)  # type: ignore[arg-type]
    parts = (told, told, waits, should_stop, deadline)
    return MismatchWatch(config, "embedded", *parts), waits  # type: ignore[arg-type]


def report(kl: float) -> StepReport:
    update = Update(WeightVersion(4, 0), {KL: kl, GAP: 2 * kl}, "hash")
    return StepReport(update, (), {})


async def test_a_small_mismatch_passes_without_a_word() -> None:
    told = Told()
    watch, _ = watch_of("stop", told, asyncio.Event())
    await watch(report(1e-9))
    assert told.events == []


async def test_a_warning_is_an_event_in_words_and_the_run_goes_on() -> None:
    told = Told()
    watch, _ = watch_of("stop", told, asyncio.Event())
    await watch(report(0.01))
    ((name, fields, text),) = told.events
    assert name == "mismatch between engine and learner"
    assert fields == {"step": 4, "kl": 0.01, "gap_max": 0.02}
    assert "step 4: engine policy (embedded) and learner disagree" in text


async def test_past_the_limit_the_error_has_figures_and_what_to_try() -> None:
    told = Told()
    watch, _ = watch_of("stop", told, asyncio.Event())
    with pytest.raises(MismatchTooLarge, match=r"KL 0\.2 per token.*rollout\.temperature.*resume"):
        await watch(report(0.2))
    assert len(told.events) == 1


async def test_pausing_waits_by_name_until_it_is_asked_to_stop() -> None:
    should_stop = asyncio.Event()
    watch, waits = watch_of("pause_publish", Told(), should_stop)
    watching = asyncio.create_task(watch(report(0.2)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (waiting,) = waits.current()
    assert waiting.name.startswith("Ctrl-C: publishing is paused, step 4: engine policy")
    assert not watching.done()
    should_stop.set()
    with pytest.raises(MismatchTooLarge):
        await watching


async def test_a_pause_that_nobody_ends_ends_at_the_deadline_with_the_same_error() -> None:
    watch, waits = watch_of("pause_publish", Told(), asyncio.Event(), deadline=0.01)
    with pytest.raises(MismatchTooLarge, match=r"KL 0\.2 per token"):
        await watch(report(0.2))
    assert waits.current() == []
