"""Storage that hangs is named, given up by a deadline, and keeps nothing from its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from manta.orchestrator.side_thread import in_thread
from manta.orchestrator.storage import Storage, StorageHangs
from manta.orchestrator.wait import Waits


async def test_what_storage_does_is_named_while_it_lasts() -> None:
    waits, answers = Waits(), threading.Event()
    asking = asyncio.create_task(Storage(waits, 20.0).ask("find a file", answers.wait, timeout=20))
    await asyncio.sleep(0)
    assert [each.name for each in waits.current()] == ["storage to find a file"]
    answers.set()
    assert await asking
    assert waits.current() == []


async def test_errors_of_storage_come_out_as_they_are() -> None:
    storage = Storage(Waits(), 20.0)
    with pytest.raises(FileNotFoundError):
        await storage.ask("find a file", open, "/nowhere/at/all")
    assert not storage.hangs


async def test_storage_that_does_not_answer_is_told_and_not_waited_for_again() -> None:
    storage, answers = Storage(Waits(), 0.05), threading.Event()
    with pytest.raises(
        StorageHangs, match=r"waited 0\.05 s for storage to read x: no answer\. .*ls"
    ):
        await storage.ask("read x", answers.wait, 20)
    assert storage.hangs
    await storage.settle()
    answers.set()


async def test_what_was_given_up_has_ended_before_anybody_else_begins() -> None:
    storage, answers = Storage(Waits(), 20.0), threading.Event()
    asking = asyncio.create_task(storage.ask("read x", answers.wait, 20))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    settling = asyncio.create_task(storage.settle())
    await asyncio.sleep(0.01)
    assert not settling.done()
    answers.set()
    await settling
    assert not storage.hangs


@pytest.mark.filterwarnings("error")
async def test_a_thread_whose_caller_has_given_up_ends_in_peace() -> None:
    answers, threads = threading.Event(), set(threading.enumerate())
    answer = in_thread(answers.wait, 20)
    [thread] = set(threading.enumerate()) - threads
    answer.cancel()
    await asyncio.sleep(0)
    answers.set()
    await asyncio.to_thread(thread.join, 20)
    assert answer.cancelled()


ENDS = """
import asyncio, threading
from manta.orchestrator.storage import Storage, StorageHangs
from manta.orchestrator.wait import Waits
try:
    asyncio.run(Storage(Waits(), 0.05).ask("read x", threading.Event().wait))
except StorageHangs:
    print("ended")
"""


def test_a_process_ends_although_its_storage_hangs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("ended\n", "")
