"""What is said where a cluster cannot be joined."""

from __future__ import annotations

import ray

from manta.orchestrator.placement import unreached


def test_a_refused_token_is_told_from_a_cluster_that_is_not_there() -> None:
    hidden = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    hidden.__cause__ = RuntimeError("Last connection error: RPC error: InvalidAuthToken: missing")
    plain = ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken: missing")
    for error in (hidden, plain):
        told = unreached("10.0.0.1:6379", error)
        assert told.startswith("the cluster at 10.0.0.1:6379 asks for a token, and did not take")
        assert "RAY_AUTH_TOKEN_PATH" in told
    told = unreached("10.0.0.1:6379", ConnectionError("Failed to connect"))
    assert told.startswith("no Ray cluster answers at 10.0.0.1:6379 (RAY_ADDRESS): is it up?")
