"""Named algorithms with their published settings, by family.

Loads no torch, so that a run file can be checked. Overriding fields is the run file's work
(`manta.orchestrator`), what must hold for any settings is `manta.algorithms.contradictions`'. The
numbers that a paper leaves open are named beside the preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from manta.algorithms.baseline_presets import BASELINE_PRESETS
from manta.algorithms.condition_presets import CONDITION_PRESETS
from manta.algorithms.group_presets import GROUP_PRESETS
from manta.algorithms.loss_presets import LOSS_PRESETS
from manta.algorithms.preference_presets import PREFERENCE_PRESETS
from manta.algorithms.settings import AlgorithmSettings
from manta.algorithms.teacher_presets import TEACHER_PRESETS
from manta.algorithms.turn_presets import TURN_PRESETS

PRESETS: Mapping[str, AlgorithmSettings] = MappingProxyType(
    {
        **GROUP_PRESETS,
        **BASELINE_PRESETS,
        **LOSS_PRESETS,
        **PREFERENCE_PRESETS,
        **TURN_PRESETS,
        **CONDITION_PRESETS,
        **TEACHER_PRESETS,
    }
)
