"""What must hold for the loss `teacher_kl`. Part of `manta.algorithms.contradictions`; loads no
torch. Whether the vocabulary is that large is `manta.orchestrator.teacher_check`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.settings import AlgorithmSettings


def teacher_problems(settings: AlgorithmSettings) -> Iterator[str]:
    """What is wrong, one sentence each."""
    if settings.loss != "teacher_kl":
        return
    told = settings.teacher
    if told.top_k < 1:
        yield f"teacher.top_k is {told.top_k}, it must be 1 or more (64 is usual)"
    if not 0 <= told.interpolation <= 1:
        yield (
            f"teacher.interpolation is {told.interpolation:g}, it must be at least 0 and at most 1"
        )
    if settings.advantage != "none":
        yield (
            f"the loss teacher_kl reads no rewards and advantage is {settings.advantage}: set it "
            "to none"
        )
    if settings.kl.coef != 0:
        yield (
            "the loss teacher_kl is the KL to the reference, over its whole distribution, and "
            f"kl.coef is {settings.kl.coef:g}, an estimate of the same: set it to 0"
        )
    useless = {
        "whiten_advantages": settings.whiten_advantages,
        "filters": bool(settings.filters),
        "proximal: learner": settings.proximal == "learner",
        "off_policy": settings.off_policy.correction != "none",
    }
    for name in [name for name, is_set in useless.items() if is_set]:
        yield f"the loss teacher_kl has no use for `{name}`: remove it"
