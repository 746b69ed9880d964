"""Where a cluster's job server is, and the token that it may ask for: from the caller's words and
environment. Loads no ray: both must be settled before it loads.
"""

from __future__ import annotations

import argparse
import os

VARIABLE = "RAY_API_SERVER_ADDRESS"


def add_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address",
        metavar="http://HEAD:8265",
        help=f"of the cluster's Ray dashboard (default: {VARIABLE})",
    )


def address_of(given: str | None) -> str:
    """The job server's address: the one given, else the environment's. Raises ValueError."""
    address = given or os.environ.get(VARIABLE)
    if not address:
        raise ValueError(
            "which cluster? give --address http://HEAD:8265 (the address of the Ray dashboard), or "
            f"set {VARIABLE}"
        )
    if not address.startswith(("http://", "https://")):
        raise ValueError(
            f"--address: is '{address}', must be the http:// or https:// address of the Ray "
            "dashboard, such as http://127.0.0.1:8265"
        )
    return address.rstrip("/")


def prepare_token() -> None:
    """Has Ray send a token that the caller has set and says nothing else of, as Ray's own commands
    do. Raises ValueError where it is to be read from a file that is not there: Ray would abort."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN"))
    if path and not has_token and not os.path.isfile(path):
        raise ValueError(f"RAY_AUTH_TOKEN_PATH: there is no file '{path}' with the token")
    if "RAY_AUTH_MODE" not in os.environ and (path or has_token):
        os.environ["RAY_AUTH_MODE"] = "token"
