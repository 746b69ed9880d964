"""Proxy and gold reward: what trains, and what it stands for (Gao et al., arXiv 2210.10760).

A learned reward is a proxy: past some point it rises while the gold reward, which nobody optimises,
falls. Owns the names of the figures that show it, and how they are worked out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from manta.envs.records import Float32, GroupSummary

AGREEMENT: Final = "reward/agreement"
PROXY: Final = "eval/reward"
PROXY_STD: Final = "eval/reward_std"
GOLD: Final = "eval/gold_reward"
GOLD_STD: Final = "eval/gold_std"


@dataclass(frozen=True, slots=True)
class RewardGap:
    """Held-out means around a stage. `gap` is by how much the proxy's gain exceeds the gold one's,
    each in standard deviations over the samples before the stage; None where these are 0."""

    proxy_before: float
    proxy_after: float
    gold_before: float
    gold_after: float
    gap: float | None


def agreement(summaries: Sequence[GroupSummary], gold: str) -> dict[str, float]:
    """The share of pairs of samples of one task, of different gold reward, that the proxy orders
    alike (equal proxies: half), over how many pairs; nothing where there is none."""
    alike, pairs = 0.0, 0
    for summary in summaries:
        if gold in summary.components:
            found, count = _ordered_alike(summary.rewards, summary.components[gold])
            alike, pairs = alike + found, pairs + count
    return {AGREEMENT: alike / pairs, f"{AGREEMENT}/pairs": float(pairs)} if pairs else {}


def reward_gap(before: Mapping[str, float], after: Mapping[str, float]) -> RewardGap | None:
    """From the figures of the evaluations before and after a stage; None where one has none."""
    if not all(name in line for name in (PROXY, GOLD) for line in (before, after)):
        return None
    gains = [
        (after[name] - before[name]) / before[std]
        for name, std in ((PROXY, PROXY_STD), (GOLD, GOLD_STD))
        if before.get(std, 0.0) > 0
    ]
    return RewardGap(
        before[PROXY],
        after[PROXY],
        before[GOLD],
        after[GOLD],
        gains[0] - gains[1] if len(gains) == 2 else None,
    )


def _ordered_alike(proxy_n: Float32, gold_n: Float32) -> tuple[float, int]:
    known_n = ~(np.isnan(proxy_n) | np.isnan(gold_n))
    proxy, gold = proxy_n[known_n], gold_n[known_n]
    # Of each pair the better one by gold first
    better_nn = gold[:, None] > gold[None, :]
    by_proxy_nn = np.sign(proxy[:, None] - proxy[None, :])
    return float((by_proxy_nn[better_nn] + 1).sum() / 2), int(better_nn.sum())
