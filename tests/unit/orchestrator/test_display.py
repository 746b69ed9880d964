from __future__ import annotations

import io
import time
from dataclasses import replace

from rich.console import Console

from manta.orchestrator.display import Display, DisplayState, step_line


def state(stage_step: int, seconds: float, stage: str = "rl") -> DisplayState:
    return DisplayState(
        stage=stage,
        stage_step=stage_step,
        stage_steps=40,
        step=stage_step + 30,
        seconds=seconds,
        reward=0.4123,
        accuracy=0.375,
        kl=0.00123,
        staleness=0.5,
        tokens_per_second=12345.6,
        samples_per_second=60.25,
        groups_in_flight=12,
        groups_ready=3,
        engine_rows=64,
        waiting_for="groups of step 13",
        waiting_since=time.monotonic() - 7.0,
    )


def test_a_step_is_one_line_where_nobody_watches() -> None:
    out = io.StringIO()
    with Display(70, Console(file=out, width=40)) as display:
        for seconds, step in ((1.0, 0), (2.0, 1), (2.5, 1), (61.0, 2)):
            display.update(state(step, seconds))
        display.event("engine 1 was restarted [bold]")
    figures = (
        "reward 0.412 | held-out 37.5% | tokens/s 12,346 | samples/s 60.2 | KL 0.0012 "
        "| staleness 0.5"
    )
    assert out.getvalue().splitlines() == [
        f"[2.0 s] rl 1/40 | {figures}",
        f"[1 min 01 s] rl 2/40 | {figures}",
        "[1 min 01 s] engine 1 was restarted [bold]",
    ]


def test_what_is_not_known_is_not_shown() -> None:
    bare = DisplayState("rl", 1, 2, 1, 3.0)
    assert step_line(bare) == "[3.0 s] rl 1/2"


def test_the_live_view_says_where_the_run_is_and_what_it_waits_for() -> None:
    display = Display(70, Console(file=io.StringIO(), force_terminal=True))
    assert display.render().plain == "starting up"
    display.update(state(10, 100.0))
    assert " left" not in display.render().plain
    display.update(state(12, 104.0))
    for number in range(6):
        display.event(f"event {number}")
    lines = display.render().plain.splitlines()
    assert lines[0].startswith("rl 12/40 ")
    assert lines[0].endswith(" 30%, 56.0 s left")
    assert lines[1] == "run step 42/70, 1 min 44 s"
    assert lines[2].startswith("reward 0.412   held-out 37.5%   tokens/s 12,346")
    assert lines[3] == "groups 12 in flight, 3 ready   engine rows 64"
    assert lines[4].startswith("waiting for groups of step 13, ")
    assert lines[5:] == [f"[1 min 44 s] event {number}" for number in (2, 3, 4, 5)]


def test_calls_without_an_engine_are_shown() -> None:
    display = Display(70, Console(file=io.StringIO(), force_terminal=True))
    display.update(replace(state(10, 100.0), calls_waiting=7, longest_wait=2.5))
    assert "engine rows 64, 7 calls wait (longest 2.5 s)\n" in display.render().plain


def test_the_pace_of_one_stage_is_not_the_next_ones() -> None:
    display = Display(70, Console(file=io.StringIO(), force_terminal=True))
    display.update(state(1, 10.0, "warm-start"))
    display.update(state(2, 20.0, "warm-start"))
    assert "6 min 20 s left" in display.render().plain
    display.update(state(0, 21.0, "rl"))
    assert " left" not in display.render().plain


def test_a_terminal_is_drawn_on_and_given_back() -> None:
    out = io.StringIO()
    with Display(70, Console(file=out, force_terminal=True, width=100)) as display:
        display.update(state(12, 104.0))
    assert "waiting for groups of step 13" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h")  # the cursor is shown again
