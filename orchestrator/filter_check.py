"""Do the filters of a stage find what they read in its rewards?"""

from __future__ import annotations

from collections.abc import Iterator

from manta.algorithms.catalogue import FILTER_READS
from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.config import StageConfig
from manta.orchestrator.strict import nearest


def filter_problems(stage: StageConfig, algorithm: AlgorithmSettings) -> Iterator[str]:
    """Problems, as the rest of the stage's key and what is wrong. What written trajectories were
    rewarded by is not known here."""
    if stage.reward is None:
        return
    for index, told in enumerate(algorithm.filters):
        components = {"component": told.component, "process": told.process}
        for key, name in components.items():
            if key in FILTER_READS[told.name] and name not in stage.reward.components:
                hint = nearest(name, stage.reward.components)
                yield f".algorithm.filters[{index}].{key}: there is no component '{name}'{hint}"
