"""A head over TLS and with a token: who has both computes there, and nobody else joins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tests.e2e import runs
from tests.e2e.heads import free_port, head
from tests.tls import certificates

pytestmark = pytest.mark.e2e
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 64}


def test_certificates_and_the_token_let_in(tmp_path: Path) -> None:
    here = ray.util.get_node_ip_address()  # as Ray makes of 127.0.0.1
    tls = certificates(tmp_path / "tls", [here, "127.0.0.1"])
    others = certificates(tmp_path / "others", [here, "127.0.0.1"])
    told = {
        "both": (tls | TOKEN, "computed 42"),
        "no certificates": (TOKEN, "speaks TLS: set RAY_USE_TLS=1"),
        "certificates of another authority": (others | TOKEN, "does not hold: "),
        "another token": (
            tls | TOKEN | {"RAY_AUTH_TOKEN": "8" * 64},
            "asks for a token, and did not take this one",
        ),
    }
    with head(tmp_path / "head.log", free_port(), variables=tls | TOKEN) as cluster:
        drivers = {
            name: subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.joined"], cwd=runs.ROOT, env=cluster | own,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for name, (own, _) in told.items()
        }  # fmt: skip
        try:
            printed = {name: each.communicate(timeout=90) for name, each in drivers.items()}
        finally:
            for each in drivers.values():
                each.kill()
    for name, (_, expected) in told.items():
        answer, errors = printed[name]
        assert expected in answer, answer + errors
        if name != "both":
            seconds = float(answer.partition(" s: ")[0])
            assert seconds < 30, answer
