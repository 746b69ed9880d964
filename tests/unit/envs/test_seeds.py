from manta.envs.seeds import sample_seed


def test_the_seed_never_changes() -> None:
    """Deterministic runs rely on it. From `printf 0/rl/train/0/0/0/0 | sha256sum`."""
    first_bytes = bytes.fromhex("089bad131773136b")
    assert first_bytes[7] < 0x80
    assert sample_seed(0, "rl/train", 0, 0, 0) == int.from_bytes(first_bytes, "little")


def test_every_part_counts() -> None:
    base = (1, "rl/train", 2, 3, 4, 5)
    changed = [
        (2, "rl/train", 2, 3, 4, 5),
        (1, "rl/eval", 2, 3, 4, 5),
        (1, "rl/train", 3, 3, 4, 5),
        (1, "rl/train", 2, 4, 4, 5),
        (1, "rl/train", 2, 3, 5, 5),
        (1, "rl/train", 2, 3, 4, 6),
    ]
    seeds = {sample_seed(*parts) for parts in [base, *changed]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
