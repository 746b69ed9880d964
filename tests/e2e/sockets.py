"""Who of a command's processes listens, and where."""

from __future__ import annotations

from ipaddress import ip_address

import psutil


def listening(pid: int) -> list[tuple[str, str]]:
    """(process, address) of every socket that process `pid` and its children listen on."""
    own = psutil.Process(pid)
    return [
        (process.name(), connection.laddr.ip)
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def check_closed(found: list[tuple[str, str]]) -> None:
    """All of it is out of reach for other machines."""
    assert {"gcs_server", "raylet"} <= {process for process, _ in found}
    assert len(found) > 5
    for process, address in found:
        ip = ip_address(address.removeprefix("::ffff:"))
        assert ip.is_loopback, f"{process} listens on {address}"
