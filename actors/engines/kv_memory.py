"""How much memory keys and values of a vLLM engine take; plain arithmetic, no torch.

vLLM hands out its cache in blocks of tokens, to each sample its own. Who asks for how many rows is
the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

CPU_BYTES = 2 << 30
"""What a CPU worker takes for itself at most: it shares the machine's memory with every role."""

CPU_BLOCK = 32
"""Tokens of a block on the CPU, whose kernels want a multiple of 32; small, so that a short sample
wastes little."""

_SPARE_BLOCKS = 9
"""vLLM keeps one block for itself; the others hold the rows that a publish scores."""


@dataclass(frozen=True, slots=True)
class KeyValueShape:
    """`heads` are those of keys (and as many of values), of `head_size` numbers of
    `element_bytes`, over `layers` layers."""

    layers: int
    heads: int
    head_size: int
    element_bytes: int

    def token_bytes(self, tensor_parallel: int) -> int:
        """Keys and values of one token on each of the devices that share the heads."""
        heads = max(1, self.heads // tensor_parallel)
        return 2 * self.layers * heads * self.head_size * self.element_bytes


def row_bytes(token_bytes: int, context: int, block: int) -> int:
    """What a sample of `context` tokens takes: whole blocks."""
    return -(-context // block) * block * token_bytes


def spare_bytes(token_bytes: int, context: int, block: int) -> int:
    """What must be there beside the rows."""
    return _SPARE_BLOCKS * block * token_bytes + row_bytes(token_bytes, context, block)


def default_cpu_bytes(token_bytes: int, context: int, max_rows: int, block: int) -> int:
    """For `max_rows` whole contexts, or `CPU_BYTES` where that is less; for one context always."""
    row = row_bytes(token_bytes, context, block)
    return min(max_rows * row, max(CPU_BYTES, row)) + spare_bytes(token_bytes, context, block)


def rows_that_fit(cache_bytes: int, token_bytes: int, context: int, block: int) -> int:
    """Whole contexts that `cache_bytes` hold."""
    free = cache_bytes - spare_bytes(token_bytes, context, block)
    return max(0, free // row_bytes(token_bytes, context, block))
