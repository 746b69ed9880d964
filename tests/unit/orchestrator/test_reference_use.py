"""Who computes the reference log-probs that a stage compares with: a stage before it, or it."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.orchestrator.cross_check import cross_check
from manta.orchestrator.lanes import train_lane
from manta.orchestrator.products import Products
from manta.orchestrator.reference_use import needs_reference, stages_with_reference
from manta.orchestrator.stage_words import reference_told
from tests.unit.orchestrator.test_name_check import CHAIN
from tests.unit.orchestrator.tiny_run import load

AS_WRITTEN = "the reference of stage 'scored', whose log-probs its groups have"
SCORED = "stages.scored.reference={model: stage:warm}"
DPO = "stages.learn.algorithm={name: dpo, samples_from: policy}"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((), AS_WRITTEN),
        ((SCORED,), AS_WRITTEN),
        ((SCORED, "stages.learn.reference={model: stage:warm}"), AS_WRITTEN),
        ((SCORED, "stages.learn.reference={model: initial}"), "initial"),
        (("stages.learn.trajectories=stage:sample",), "the weights at the start of the stage"),
        (("stages.learn.trajectories=DUMP",), "the weights at the start of the stage"),
        ((DPO,), AS_WRITTEN),
        ((DPO, "stages.learn.trajectories=stage:sample"), "the weights at the start of the stage"),
    ],
)
def test_written_groups_are_scored_where_they_lack_the_stage_s_reference(
    tmp_path: Path, overrides: tuple[str, ...], told: str
) -> None:
    """Whatever the loss: a KL penalty, or one that couples rows."""
    loaded = load(tmp_path, *(o.replace("DUMP", str(tmp_path)) for o in overrides), text=CHAIN)
    assert cross_check(loaded) == []
    learn = loaded.stages[3]
    assert needs_reference(loaded, learn) == (told != AS_WRITTEN)
    assert reference_told(loaded, learn) == told
    names = [stage.name for stage in stages_with_reference(loaded)]
    assert names == (["scored", "rl"] if told == AS_WRITTEN else ["scored", "learn", "rl"])
    if learn.written_by is None:
        assert train_lane(loaded, learn, Products(tmp_path)).uses_reference
