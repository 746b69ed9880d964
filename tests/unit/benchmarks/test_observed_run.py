"""A command watched from outside: steps, and the processor time of all that it started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.observed_run import Window, observe

STEPS = """
import json, subprocess, sys, time
burn = "import time\\nend = time.process_time() + {}\\nwhile time.process_time() < end: pass"
lines = open(sys.argv[1], "w")
for step in range(1, 5):
    if step > 1:
        # A child in a session of its own, as Ray's are
        subprocess.run([sys.executable, "-S", "-c", burn.format(0.2)], start_new_session=True)
    time.sleep(1.5)  # long enough to be seen on a busy machine
    lines.write(json.dumps({"step": step, "seconds": 10.0 * step * step}) + "\\n")
    lines.flush()
time.sleep(0.3)
sys.exit(int(sys.argv[2]))
"""


def run(tmp_path: Path, code: int = 0) -> tuple[float, tuple[float, ...]]:
    lines = tmp_path / "lines.jsonl"
    command = [sys.executable, "-S", "-c", STEPS, str(lines), str(code)]
    cores = sorted(os.sched_getaffinity(0))[:1]
    seen = observe(command, tmp_path / "log.txt", lines, Window(2, 3), cores, 60.0)
    return seen.cpu_seconds, seen.step_seconds


def test_steps_are_timed_by_the_commands_clock_and_children_count(tmp_path: Path) -> None:
    cpu_seconds, step_seconds = run(tmp_path)
    assert step_seconds == (30.0, 50.0)
    assert 0.39 <= cpu_seconds < 0.6 + 0.4  # two children of 0.2 s, and starting them


def test_a_command_that_fails_is_told_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        run(tmp_path, code=3)
