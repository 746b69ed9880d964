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
        if "component" not in FILTER_READS[told.name]:
            continue
        if told.component not in stage.reward.components:
            hint = nearest(told.component, stage.reward.components)
            yield (
                f".algorithm.filters[{index}].component: there is no component "
                f"'{told.component}'{hint}"
            )
