"""A job server that never answers, and run directories that cannot be read: what commands do."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from manta.orchestrator import job_server
from manta.orchestrator.cli import main
from manta.orchestrator.job_server import JobServer

TINY = {
    "type": "SUBMISSION",
    "submission_id": "tiny-1",
    "status": "RUNNING",
    "entrypoint": "manta train",
    "metadata": {"manta.run": "tiny"},
}
ANSWERS: dict[str, object] = {
    "/api/version": {"version": "4", "ray_version": "2.50.0", "ray_commit": "x"},
    "/api/jobs/": [TINY],
}


class Head:
    """Answers the first `willing` questions that it knows; holds all others until it is closed."""

    def __init__(self, willing: int) -> None:
        self.willing = willing
        self.is_over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                head.willing -= 1
                if head.willing < 0 or self.path not in ANSWERS:
                    head.is_over.wait(30)
                    return
                body = json.dumps(ANSWERS[self.path]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    for name in ("ANSWER_SECONDS", "WORK_SECONDS"):
        assert getattr(job_server, name) <= 120
        monkeypatch.setattr(job_server, name, 0.3)
    found = Head(100)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("words", "willing"),
    [
        # One question finds the server, two are for its version, the fourth is for the runs
        (["list"], 1),
        (["list"], 3),
        (["status", "tiny"], 3),
        (["logs", "tiny"], 4),
        (["logs", "-f", "tiny"], 4),
        (["stop", "tiny"], 4),
    ],
)
def test_a_head_that_hangs_is_given_up_and_told(
    head: Head, capsys: pytest.CaptureFixture[str], words: list[str], willing: int
) -> None:
    head.willing = willing
    start = time.monotonic()
    assert main(["runs", *words, "--address", head.address]) == 2
    assert time.monotonic() - start < 10
    told = capsys.readouterr().err
    assert told.startswith(
        f"manta runs: the Ray job server at {head.address} takes requests and does not answer them"
    )
    assert len(told.splitlines()) == 1


def test_so_is_one_that_hangs_while_a_run_is_sent(head: Head) -> None:
    server = JobServer(head.address)
    head.willing = 0
    with pytest.raises(ValueError, match="does not answer them: does its head hang"):
        server.submit("true", "tiny-2", {}, {})
    with pytest.raises(ValueError, match="does not answer them"):
        server.keep({"NAME": "value"}, {})
    with pytest.raises(ValueError, match="does not answer them"):
        server.delete("tiny-1")


def test_a_run_that_prints_nothing_is_followed_while_its_server_answers(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is silent from the start; the server says of the job that it runs, then that it
    ended."""
    told = {**TINY}
    monkeypatch.setitem(ANSWERS, "/api/jobs/tiny-1", told)
    server = JobServer(head.address)
    ending = threading.Timer(1.0, lambda: told.update(status="SUCCEEDED"))
    ending.start()

    async def followed() -> list[str]:
        return [text async for text in server.follow("tiny-1")]

    start = time.monotonic()
    assert asyncio.run(followed()) == []
    assert 0.9 < time.monotonic() - start < 10


def test_a_run_directory_that_cannot_be_read_hides_no_other_run(
    head: Head,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    runs = [
        {**TINY, "submission_id": f"{name}-1", "status": "SUCCEEDED",
         "metadata": {"manta.run": name, "manta.dir": str(tmp_path / name)}}
        for name in ("torn", "empty", "folders", "well")
    ]  # fmt: skip
    monkeypatch.setitem(ANSWERS, "/api/jobs/", runs)
    for name, text in (("torn", "{"), ("empty", "{}"), ("well", '{"state": "stopped"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
        (tmp_path / name / "metrics.jsonl").write_bytes(b"\xff\n{}\n[]\n")
    for name in ("summary.json", "metrics.jsonl"):
        (tmp_path / "folders" / name).mkdir(parents=True)
    with (tmp_path / "well/metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "step": 3}\n')
    assert main(["runs", "list", "--address", head.address]) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["torn-1", "finished", "-", "-"],
        ["empty-1", "finished", "-", "-"],
        ["folders-1", "finished", "-", "-"],
        ["well-1", "stopped", "rl", "3"],
    ]
