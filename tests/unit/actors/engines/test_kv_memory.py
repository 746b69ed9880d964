"""Memory for keys and values: what is asked for holds what it is asked for."""

from __future__ import annotations

import pytest

from manta.actors.engines.kv_memory import (
    CPU_BLOCK,
    CPU_BYTES,
    KeyValueShape,
    default_cpu_bytes,
    row_bytes,
    rows_that_fit,
)

SHAPE = KeyValueShape(layers=4, heads=2, head_size=32, element_bytes=4)


def test_a_token_has_a_key_and_a_value_in_every_head_and_layer() -> None:
    assert SHAPE.token_bytes(1) == 2 * 4 * 2 * 32 * 4
    assert SHAPE.token_bytes(2) == SHAPE.token_bytes(1) // 2
    assert SHAPE.token_bytes(4) == SHAPE.token_bytes(2), "a head is copied, not cut"


def test_a_row_takes_whole_blocks() -> None:
    assert row_bytes(10, context=32, block=32) == 320
    assert row_bytes(10, context=33, block=32) == 640


@pytest.mark.parametrize(("context", "rows"), [(17, 1024), (641, 8), (4097, 3)])
def test_the_default_on_a_cpu_holds_every_row(context: int, rows: int) -> None:
    token = SHAPE.token_bytes(1)
    size = default_cpu_bytes(token, context, rows, CPU_BLOCK)
    assert rows_that_fit(size, token, context, CPU_BLOCK) == rows
    assert rows_that_fit(size - 1, token, context, CPU_BLOCK) == rows - 1


def test_the_default_is_bounded_but_holds_one_row_always() -> None:
    token = SHAPE.token_bytes(1)
    many = default_cpu_bytes(token, 2048, 10**6, CPU_BLOCK)
    assert CPU_BYTES < many < CPU_BYTES * 1.1
    long = CPU_BYTES // token * 2
    assert rows_that_fit(default_cpu_bytes(token, long, 4, CPU_BLOCK), token, long, CPU_BLOCK) == 1
