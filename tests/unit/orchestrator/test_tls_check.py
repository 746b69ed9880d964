"""A head that speaks TLS and a command that does not, and the other way round: told at once."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from manta.orchestrator.tls_check import AUTHORITY, CERTIFICATE, KEY, SWITCH, check_tls
from tests.tls import certificates

HERE = "127.0.0.1"


@contextmanager
def head(
    environment: dict[str, str], newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Iterator[int]:
    """The port of something that greets whoever comes, over TLS if the environment says so, and
    then wants a certificate, as Ray does."""
    context = None
    if environment:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=environment[AUTHORITY])
        context.load_cert_chain(environment[CERTIFICATE], environment[KEY])
        context.verify_mode, context.maximum_version = ssl.CERT_REQUIRED, newest
    with socket.create_server((HERE, 0)) as server:
        thread = threading.Thread(target=_greet, args=(server, context), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(20)


def _greet(server: socket.socket, context: ssl.SSLContext | None) -> None:
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.settimeout(5)
                if context is None:
                    connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")
                    connection.recv(4096)
                else:
                    context.wrap_socket(connection, server_side=True).recv(1)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return certificates(tmp_path_factory.mktemp("tls") / "one", [HERE])


def test_the_same_on_both_sides_is_well(tls: dict[str, str]) -> None:
    for both in ({}, tls):
        with head(both) as port:
            assert check_tls(HERE, port, both) is None
    assert check_tls(HERE, port, tls) is None, "nobody there: that is told elsewhere"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_one_side_alone_is_told(tls: dict[str, str], version: ssl.TLSVersion) -> None:
    with (
        head(tls, version) as port,
        pytest.raises(ValueError, match=rf"{HERE}:\d+ speaks TLS: set RAY_USE_TLS=1"),
    ):
        check_tls(HERE, port, {SWITCH: "0"})
    with (
        head({}) as port,
        pytest.raises(ValueError, match=r"does not speak TLS \(.*\): unset RAY_USE_TLS"),
    ):
        check_tls(HERE, port, tls)


def test_certificates_that_do_not_fit_are_told(tls: dict[str, str], tmp_path: Path) -> None:
    elsewhere = certificates(tmp_path / "other", ["192.0.2.7"])
    mixed = {**tls, AUTHORITY: elsewhere[AUTHORITY]}
    with head(tls) as port, pytest.raises(ValueError, match=r"does not hold: .*RAY_TLS_CA_CERT"):
        check_tls(HERE, port, mixed)
    with (
        head(elsewhere) as port,
        pytest.raises(ValueError, match=r"does not hold: IP address mismatch.*subjectAltName"),
    ):
        check_tls(HERE, port, elsewhere)
    with pytest.raises(ValueError, match="RAY_TLS_SERVER_KEY is '': must be a PEM file"):
        check_tls(HERE, port, {**tls, KEY: ""})
    with pytest.raises(ValueError, match="cannot be used: KEY_VALUES_MISMATCH"):
        check_tls(HERE, port, {**tls, KEY: elsewhere[KEY]})
