"""What the loss `teacher_kl` looks at, as plain values. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """Of each token's place the `top_k` tokens that the teacher, which is the reference, finds
    likeliest, and all others together. `interpolation`: 0 is KL(teacher || policy), 1 the reverse
    KL(policy || teacher), what lies between holds both against their mixture
    (`manta.algorithms.teacher_kl`)."""

    top_k: int = 64
    interpolation: float = 0.0
