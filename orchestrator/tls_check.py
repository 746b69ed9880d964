"""Whether this process and the head of a cluster both speak TLS, or neither: told at once.

Where they do not, Ray tries for minutes and says that nobody answers. Owns one handshake, before
Ray's own; what Ray then does with its certificates is Ray's.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

SWITCH = "RAY_USE_TLS"
CERTIFICATE, KEY, AUTHORITY = "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"
_SECONDS = 5.0


def check_tls(host: str, port: int, environment: Mapping[str, str]) -> None:
    """Raises ValueError where no connection to the head can be made, by what `environment` says
    of TLS. Says nothing of a head that does not answer at all."""
    if environment.get(SWITCH, "0").lower() not in ("1", "true"):
        if _speaks_tls(host, port):
            raise ValueError(
                f"the cluster at {host}:{port} speaks TLS: set {SWITCH}=1, and {CERTIFICATE}, "
                f"{KEY} and {AUTHORITY} to PEM files, as on its head (docs/cluster.md)"
            )
        return
    for name in (CERTIFICATE, KEY, AUTHORITY):
        if not Path(environment.get(name, "")).is_file():
            raise ValueError(
                f"{SWITCH} is set, and {name} is '{environment.get(name, '')}': must be a PEM file"
            )
    try:
        context = ssl.create_default_context(cafile=environment[AUTHORITY])
        context.load_cert_chain(environment[CERTIFICATE], environment[KEY])
    except ssl.SSLError as error:
        raise ValueError(
            f"{CERTIFICATE}, {KEY} or {AUTHORITY} cannot be used: {error.reason}. They are a "
            "certificate, its own key, and the certificate of who signed it, as PEM files"
        ) from error
    _shake_hands(host, port, context)


def _shake_hands(host: str, port: int, context: ssl.SSLContext) -> None:
    try:
        with (
            socket.create_connection((host, port), _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise ValueError(
            f"the certificate of the cluster at {host}:{port} does not hold: "
            f"{error.verify_message}. {AUTHORITY} must have signed it, and its subjectAltName must "
            "have the address of every node that uses it"
        ) from error
    except ssl.SSLError as error:
        raise ValueError(
            f"the cluster at {host}:{port} does not speak TLS ({error.reason}): unset {SWITCH}"
        ) from error
    except OSError:
        return  # nobody is there: Ray finds that out by itself


def _speaks_tls(host: str, port: int) -> bool:
    """Whoever they are: no certificate is looked at, and nothing is sent but a greeting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), _SECONDS) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it wants a certificate of ours
    except OSError:
        return False
