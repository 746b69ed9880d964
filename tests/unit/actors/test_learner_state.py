"""What a learner keeps beside its backend survives a checkpoint to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from manta.actors.backends.plain import PlainBackend
from manta.actors.backends.settings import LearnerSettings
from manta.actors.checkpoint_writer import CheckpointWriter
from manta.actors.learner_state import read_kl
from manta.actors.learning import Learner
from manta.actors.rank import save_part
from manta.actors.step_work import Saved
from manta.algorithms.part_settings import KlSettings
from manta.algorithms.settings import AlgorithmSettings
from manta.envs.records import WeightVersion
from tiny import groups_of, plan_of, rows_by_index, tiny_model

FOLLOWING = AlgorithmSettings(
    "grpo", samples_per_prompt=4, kl=KlSettings(0.05, target=0.5, gain=0.3)
)


def fresh(algorithm: AlgorithmSettings = FOLLOWING) -> tuple[Learner, PlainBackend]:
    backend = PlainBackend(tiny_model(), LearnerSettings())
    return Learner(backend, algorithm, 8192, temperature=0.9), backend


def test_a_learner_that_goes_on_from_a_checkpoint_ends_as_one_that_did_not(tmp_path: Path) -> None:
    groups = groups_of((4, 3, 5))
    plan = plan_of(groups)
    rows = rows_by_index(plan, groups)
    straight, backend = fresh()
    reports = [straight.step(plan, rows, 1, 2, 0.01) for _ in range(2)]
    told: list[Saved] = []
    writer = CheckpointWriter(lambda _, saved: told.append(saved))
    save_part(backend, writer, 0, 2, str(tmp_path), straight.kl.coef)
    writer.wait()
    assert "kl.json" in [file.name for file in told[0].files]
    reports += [straight.step(plan, rows, 1, 2, 0.01) for _ in range(2)]

    resumed, other = fresh()
    other.load(tmp_path)
    resumed.kl.coef = read_kl(tmp_path)
    again = [resumed.step(plan, rows, 1, 2, 0.01) for _ in range(2)]
    assert again == reports[2:]
    assert resumed.kl.coef == straight.kl.coef
    version = WeightVersion(4, 0)
    assert other.weights(version).sha256 == backend.weights(version).sha256
    coefs = [report["kl/coef"] for report in reports]
    assert coefs[0] == 0.05 and len(set(coefs)) == 4


@pytest.mark.parametrize("placement", ["loss", "reward"])
def test_the_coefficient_of_a_step_decides_what_it_learns(placement: str) -> None:
    """A step at the coefficient that it has come to is a step at that coefficient."""
    groups = groups_of((4, 3, 5))
    plan = plan_of(groups)
    rows = rows_by_index(plan, groups)
    kl = KlSettings(0.05, "k3" if placement == "loss" else "k1", placement)  # type: ignore[arg-type]
    learner, backend = fresh(replace(FOLLOWING, kl=replace(kl, target=0.5)))
    learner.kl.coef = 0.9
    fixed, other = fresh(replace(FOLLOWING, kl=replace(kl, coef=0.9)))
    report, expected = (each.step(plan, rows, 1, 2, 0.01) for each in (learner, fixed))
    assert report.pop("kl/coef") == 0.9 and report.pop("kl/measured") != 0
    assert report == expected
    version = WeightVersion(1, 0)
    assert backend.weights(version).sha256 == other.weights(version).sha256


def test_a_checkpoint_without_a_coefficient_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"kl\.json does not say .* go on from another checkpoint"):
        read_kl(tmp_path)
    (tmp_path / "kl.json").write_text('{"coef": ')
    with pytest.raises(ValueError, match="does not say"):
        read_kl(tmp_path)
