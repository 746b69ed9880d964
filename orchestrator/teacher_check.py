"""What a run file must say where a stage learns from a teacher.

What such an algorithm must say of itself is `contradictions.check`'s, what a reference is made of
`manta.orchestrator.name_check`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.catalogue import LOSS_KINDS, reference_top_k
from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.config import RunFile, StageConfig


def teacher_problems(run_file: RunFile, vocab_size: int | None) -> Iterator[str]:
    """One line each, starting with the key. `vocab_size` is the tokenizer's, None where there is
    none."""
    for index, stage in enumerate(run_file.stages):
        if stage.kind == "train" and stage.algorithm is not None:
            for told in _stage(run_file, stage, stage.algorithm, vocab_size):
                yield f"stages[{index}]{told}"


def _stage(
    run_file: RunFile, stage: StageConfig, algorithm: AlgorithmSettings, vocab_size: int | None
) -> Iterator[str]:
    """Problems of one stage, as the rest of the key and what is wrong."""
    top_k = reference_top_k(algorithm)
    learns_from_kl = algorithm.advantage == "none" and LOSS_KINDS[algorithm.loss].uses_advantages
    if not top_k and not learns_from_kl:
        return
    if vocab_size is not None and top_k > vocab_size:
        yield (
            f".algorithm.teacher.top_k: is {top_k:,}, and the tokenizer has {vocab_size:,} tokens: "
            "set it to that or less"
        )
    if run_file.reference_of(stage).is_policy:
        yield (
            f".reference: algorithm '{algorithm.name}' learns from a teacher, and by default the "
            "reference is the policy itself, when the stage starts: name one (reference.model)"
        )
    temperature = run_file.rollout.temperature
    if top_k and algorithm.samples_from == "given" and temperature != 1:
        yield (
            f".algorithm: '{algorithm.name}' compares distributions on given answers, at "
            f"temperature 1, with the reference's, which are at rollout.temperature "
            f"({temperature:g}): set that to 1 (evaluate.temperature is another), or train this "
            "stage in a run of its own"
        )
