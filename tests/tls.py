"""Certificates made on the spot: an authority, and one that it signed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from manta.orchestrator.tls_check import AUTHORITY, CERTIFICATE, KEY, SWITCH

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def certificates(folder: Path, addresses: Sequence[str]) -> dict[str, str]:
    """The environment in which Ray speaks TLS with a certificate for these IP `addresses`."""
    folder.mkdir(parents=True)
    _openssl(
        folder, "req", "-x509", *_NEW_KEY,
        "-subj", "/CN=authority", "-keyout", "authority.key", "-out", "authority.pem",
    )  # fmt: skip
    names = ",".join(f"IP:{address}" for address in addresses)
    _openssl(
        folder, "req", "-x509", *_NEW_KEY, "-CA", "authority.pem", "-CAkey", "authority.key",
        "-subj", "/CN=node", "-addext", f"subjectAltName={names}",
        "-keyout", "node.key", "-out", "node.pem",
    )  # fmt: skip
    return {
        SWITCH: "1",
        CERTIFICATE: str(folder / "node.pem"),
        KEY: str(folder / "node.key"),
        AUTHORITY: str(folder / "authority.pem"),
    }


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
