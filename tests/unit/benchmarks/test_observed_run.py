"""A command watched from outside: steps, and the processor time of all that it started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.observed_run import Window, observe

STEPS = """
import json, subprocess, sys, time
burn = "import time\\nend = time.process_time() + 0.5\\nwhile time.process_time() < end: pass"
lines = open(sys.argv[1], "w")
for step in range(1, 5):
    if step > 1:
        # A child in a session of its own, as Ray's are
        subprocess.run([sys.executable, "-S", "-c", burn], start_new_session=True)
    time.sleep(1.5)  # long enough to be seen on a busy machine
    lines.write(json.dumps({"step": step, "seconds": 10.0 * step * step}) + "\\n")
    lines.flush()
time.sleep(0.3)
"""


def run(tmp_path: Path, script: str) -> tuple[float, tuple[float, ...]]:
    lines = tmp_path / "lines.jsonl"
    command = [sys.executable, "-S", "-c", script, str(lines)]
    cores = sorted(os.sched_getaffinity(0))[:1]
    seen = observe(command, tmp_path / "log.txt", lines, Window(2, 3), cores, 60.0)
    return seen.cpu_seconds, seen.step_seconds


def test_steps_are_timed_by_the_commands_clock_and_children_count(tmp_path: Path) -> None:
    cpu_seconds, step_seconds = run(tmp_path, STEPS)
    assert step_seconds == (30.0, 50.0)
    # Two children of 0.5 s, cut off to ticks of 10 ms, and starting them; counted twice they would
    # be 2
    assert 0.9 <= cpu_seconds < 1.8


def test_a_command_that_fails_is_told_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        run(tmp_path, "raise SystemExit(3)")
