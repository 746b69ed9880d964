"""What must hold for a row beside the samples of a prompt, and for what reads it.

Part of `manta.algorithms.contradictions`. Loads no torch. Whether rewards and environment go with
it is `manta.orchestrator`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.catalogue import ADVANTAGE_KINDS, LOSS_KINDS
from manta.algorithms.settings import AlgorithmSettings


def companion_problems(settings: AlgorithmSettings) -> Iterator[str]:
    """What is wrong, one sentence each."""
    companion = settings.companion
    if companion != "none" and settings.samples_from == "given":
        yield (
            f"companion is {companion}, a row beside what the policy samples, and samples_from is "
            "given: remove one of the two"
        )
    if settings.is_paired:
        yield from _compared(settings)
        return
    if companion == "written":
        yield (
            "companion is written, a row that samples are compared with, and the loss "
            f"{settings.loss} compares none: remove it, or set loss to xpo"
        )
        return
    if not LOSS_KINDS[settings.loss].uses_advantages:
        if companion != "none":
            yield (
                f"companion is {companion}, but the loss {settings.loss} has no use for a row "
                "beside the samples: remove it"
            )
        return
    takes = ADVANTAGE_KINDS[settings.advantage].companions
    if companion not in takes:
        yield _does_not_go(settings.advantage, companion, takes)
    elif companion == "given":
        yield from _given(settings)


def _compared(settings: AlgorithmSettings) -> Iterator[str]:
    """Of a loss of pairs."""
    companion, is_beside = settings.companion, settings.pairs == "companion"
    if settings.loss == "xpo" and not is_beside:
        yield (
            f"pairs is {settings.pairs}, and the loss xpo compares samples with those of the "
            "reference: set pairs to companion, and companion to written"
        )
    elif is_beside and companion != "written":
        yield (
            f"pairs is companion, a sample with the row beside it, and companion is {companion}: "
            "set it to written"
        )
    elif companion != "none" and not is_beside:
        yield (
            f"companion is {companion}, but pairs is {settings.pairs}, of which it is none: remove "
            "it, or set companion to written and pairs to companion"
        )


def _does_not_go(advantage: str, companion: str, takes: tuple[str, ...]) -> str:
    if "none" not in takes:
        return (
            f"advantage {advantage} needs a {takes[0]} answer beside the samples of a prompt, and "
            f"companion is {companion}: set it to {takes[0]}, or choose another advantage"
        )
    readers = [name for name, kind in ADVANTAGE_KINDS.items() if companion in kind.companions]
    return (
        f"companion is {companion}, but advantage {advantage} does not read it: remove it, or set "
        f"advantage to {' or '.join(readers)}"
    )


def _given(settings: AlgorithmSettings) -> Iterator[str]:
    """Nobody sampled the row, so that it has no log-prob of a behaviour policy."""
    ratio = LOSS_KINDS[settings.loss].ratio
    if ratio is not None:
        yield (
            "companion is given, an answer that no engine sampled, and the loss "
            f"{settings.loss} is of a ratio to the log-probs of whoever did: set loss to "
            "policy_gradient"
        )
    correction = settings.off_policy.correction
    if correction != "none":
        yield (
            f"companion is given, an answer that no engine sampled, and off_policy.correction is "
            f"{correction}, which weighs tokens by the log-probs of whoever did: set it to none"
        )
    if settings.kl.coef != 0:
        yield (
            "companion is given, and the KL estimators need tokens that the policy sampled: set "
            "kl.coef to 0"
        )
    if settings.whiten_advantages:
        yield (
            "whiten_advantages would measure the given answer's advantages with those of the "
            "samples, which they are made of: remove it"
        )
