"""Packed trajectories come back as they were, in few buffers."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np

from manta.envs.packing import Block, pack, pack_references
from manta.envs.records import (
    COMPANION,
    TOKEN_REWARDS,
    Companion,
    Float32,
    GroupId,
    Likeliest,
    ReferenceStatistics,
    Score,
    ScoredGroup,
    Task,
    Trajectory,
    Turn,
    VersionSpan,
    WeightVersion,
)


def trajectory(sample: int, length: int, has_logprobs: bool = True) -> Trajectory:
    generator = np.random.default_rng([sample + 1, length])
    return Trajectory(
        task_id="t",
        sample=sample,
        model="policy",
        token_ids=generator.integers(0, 99, length, dtype=np.int32),
        loss_mask=generator.random(length) > 0.5,
        logprobs=generator.random(length, np.float32) if has_logprobs else None,
        weight_versions=(VersionSpan(1, WeightVersion(3, 0)),),
        turns=(Turn("prompt", 0, length),),
        finish_reason="stop",
        artifact=f"answer {sample}",
        env_info={"num_turns": 1.0},
    )


def columns(size: int) -> dict[str, Float32]:
    """One as long as the trajectory, one that is shorter."""
    return {
        TOKEN_REWARDS: np.arange(size, dtype=np.float32),
        "own": np.ones(1, np.float32),
    }


def group(
    position: int,
    sizes: tuple[int, ...],
    has_reference: bool,
    has_companion: bool = False,
    is_compared: bool = False,
    k: int | None = None,
) -> ScoredGroup:
    looked = np.full(6, -0.5, np.float32) if is_compared else None
    beside = Companion(trajectory(COMPANION, 6, has_logprobs=False), Score(0.5, {}), looked)
    own = tuple(trajectory(i, size, has_logprobs=i != 1) for i, size in enumerate(sizes))
    reference = ReferenceStatistics(
        "5.0",
        tuple(np.full(size, -float(i), np.float32) for i, size in enumerate(sizes)),
        tuple(likeliest(t, k) for t in own) if k is not None else (),
    )
    return ScoredGroup(
        GroupId(0, position, 0),
        Task("t", "prompt", 3, "arithmetic"),
        own,
        tuple(
            Score(float(i), {"correct": float(i)}, columns=columns(size) if i else {})
            for i, size in enumerate(sizes)
        ),
        reference if has_reference else None,
        {"correct": "exact"},
        {"generate": 0.5},
        (position, 7),
        beside if has_companion else None,
    )


def likeliest(of: Trajectory, k: int) -> Likeliest:
    """Numbers that tell where they belong."""
    count = int(of.loss_mask.sum())
    ids = 100 * of.sample + np.arange(count * k, dtype=np.int32).reshape(count, k)
    logprobs = -np.arange(count * (k + 1), dtype=np.float32).reshape(count, k + 1) - of.sample
    return Likeliest(ids, logprobs, np.full(count, of.sample + 0.5, np.float32))


def same(left: Trajectory, right: Trajectory) -> bool:
    arrays = all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("token_ids", "loss_mask")
    )
    if left.logprobs is None or right.logprobs is None:
        logprobs = left.logprobs is right.logprobs
    else:
        logprobs = np.array_equal(left.logprobs, right.logprobs)
    rest = all(
        getattr(left, name) == getattr(right, name)
        for name in ("task_id", "sample", "model", "weight_versions", "turns", "artifact",
                     "finish_reason", "env_info", "parent", "media")
    )  # fmt: skip
    return arrays and logprobs and rest


def test_packing_keeps_every_trajectory() -> None:
    many = [trajectory(i, size, i % 2 == 0) for i, size in enumerate((3, 1, 0, 7))]
    unpacked = pack(many).unpack()
    assert len(unpacked) == 4
    assert all(same(a, b) for a, b in zip(many, unpacked, strict=True))
    assert pack([]).unpack() == ()


def test_a_block_survives_pickling_in_few_buffers() -> None:
    block = Block(
        (
            group(0, (4, 2), True, True, True),
            group(1, (5,), False),
            group(2, (1, 3, 2), True, True),
            group(3, (2,), True, True, True),
        )
    )
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(block, protocol=5, buffer_callback=buffers.append)
    back = pickle.loads(data, buffers=buffers)
    assert len(buffers) == 7 + 1
    for ours, theirs in zip(block.groups, back.groups, strict=True):
        assert ours.content_hash() == theirs.content_hash()
        assert all(same(a, b) for a, b in zip(ours.rows, theirs.rows, strict=True))
        assert len(ours.trajectories) == len(theirs.trajectories)
        assert (ours.id, ours.task) == (theirs.id, theirs.task)
        for own, other in zip(ours.row_scores, theirs.row_scores, strict=True):
            assert replace(own, columns={}) == replace(other, columns={})
            assert {name: each.tolist() for name, each in own.columns.items()} == {
                name: each.tolist() for name, each in other.columns.items()
            }
        assert (ours.reference is None) == (theirs.reference is None)
        for looked, found in zip(ours.row_references, theirs.row_references, strict=True):
            assert (looked is None) == (found is None)
            assert looked is None or np.array_equal(looked, found)


def test_what_a_reference_finds_likely_travels_where_it_was_asked() -> None:
    """Beside groups without it; with as many tokens as each group has."""
    block = Block(
        (group(0, (4, 7), True, True, k=3), group(1, (5,), True), group(2, (9, 2), True, k=1))
    )
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(block, protocol=5, buffer_callback=buffers.append)
    back = pickle.loads(data, buffers=buffers)
    assert len(buffers) == 7 + 4
    for ours, theirs in zip(block.groups, back.groups, strict=True):
        assert ours.reference is not None and theirs.reference is not None
        assert len(ours.reference.likeliest) == len(theirs.reference.likeliest)
        assert theirs.reference.version == "5.0"
        for own, other in zip(ours.reference.likeliest, theirs.reference.likeliest, strict=True):
            for mine, found in zip(own, other, strict=True):
                assert (mine.dtype, mine.shape) == (found.dtype, found.shape)
                np.testing.assert_array_equal(mine, found)
    [whole] = pack_references([block.groups[2].reference]).unpack([block.groups[2].trajectories])
    assert whole is not None
    part = whole.part([1])
    np.testing.assert_array_equal(part.logprobs[0], np.full(2, -1, np.float32))
    assert part.likeliest[0].weights.tolist() == [1.5] * len(part.likeliest[0].ids)
