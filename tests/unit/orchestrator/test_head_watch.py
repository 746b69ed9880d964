"""A head that goes away is missed soon; a Ray of one's own, and one that answers, never."""

from __future__ import annotations

import asyncio
import socket

import pytest

from manta.orchestrator.head_watch import HeadLost, lost_head, watch_head


async def test_a_head_is_missed_once_it_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watching = asyncio.create_task(watch_head(address, seconds=0.01))
        alone = asyncio.create_task(watch_head("", seconds=0.01))
        await asyncio.sleep(0.1)
        assert lost_head(address) == ""
        assert not watching.done()
    with pytest.raises(HeadLost, match=rf"{address} is gone \(.*refused\), .* newest checkpoint"):
        await asyncio.wait_for(watching, 20)
    assert not alone.done()
    alone.cancel()
