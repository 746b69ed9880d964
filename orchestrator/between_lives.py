"""The end of a run between two lives of its driver, when the next one cannot begin.

The life before has written that it begins anew, and nobody else is there to record the end.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import replace

from manta.orchestrator import status
from manta.orchestrator.run_directory import RunDirectory, atomic_write


def end_between_lives(directory: RunDirectory, error: Exception) -> int:
    """Records `error` as the end of the run, and tells it in a line; the exit code."""
    told = " ".join(str(error).split())
    with suppress(OSError, ValueError):
        last = status.read(directory.status)
        ended = replace(last, written=time.time(), state="failed", waits=(), error=told)
        status.write(directory.status, ended)
    with suppress(OSError, ValueError):
        summary = json.loads(directory.summary.read_text(encoding="utf-8"))
        text = json.dumps({**summary, "state": "failed", "error": told}, indent=2)
        atomic_write(directory.summary, f"{text}\n")
    print(f"manta train: the run could not begin anew: {told}", file=sys.stderr)
    return 1
