"""How a worker's death is learnt: by a call that it never answers, and that fails with it."""

from __future__ import annotations

import asyncio


class Stays:
    """A Ray shell that somebody watches."""

    async def stay(self) -> None:
        """Returns never: who awaits it is woken the moment this process is gone."""
        await asyncio.Event().wait()
