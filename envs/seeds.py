"""Where a sample's random stream comes from. Owns nothing but the one hash."""

from __future__ import annotations

import hashlib


def sample_seed(
    run_seed: int, purpose: str, epoch: int, position: int, sample: int, turn: int = 0
) -> int:
    """A seed in 0..2**63-1 for one turn of one sample.

    The first 8 bytes of SHA-256 over `run_seed/purpose/epoch/position/sample/turn` in decimal and
    UTF-8 (little endian), without the top bit. The attempt is left out on purpose: a retry of a
    group draws the same samples. The turn is in it, because an engine starts its stream anew with
    every request.
    """
    text = f"{run_seed}/{purpose}/{epoch}/{position}/{sample}/{turn}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") & (2**63 - 1)
