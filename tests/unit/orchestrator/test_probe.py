"""What the probe's log-probs prove, and what they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from manta.actors.step_work import StepReport
from manta.actors.transports.protocol import Delivery
from manta.actors.weights import Receipt
from manta.envs.records import Float32, WeightVersion
from manta.envs.step_records import Update
from manta.orchestrator.probe import (
    Answer,
    Proofs,
    Tolerances,
    largest_gap,
    probe_rows,
    widest_gap,
)

TOLERANCES = Tolerances(learner=0.2, engines=1e-2)


def probe(value: float) -> tuple[Float32, ...]:
    return (np.full(3, -value, np.float32), np.full(5, -2 * value, np.float32))


def report(step: int, value: float, weights_hash: str = "") -> StepReport:
    update = Update(WeightVersion(step, 0), {}, weights_hash or f"hash{step}")
    return StepReport(update, probe(value), {})


def answer(to: StepReport, value: float) -> Answer:
    receipt = Receipt(to.update.version, to.update.weights_hash)
    return Answer(Delivery(receipt, 10), probe(value))


def problems(proofs: Proofs, to: StepReport, **values: float) -> dict[str, str]:
    """Judges engines that answer with `values`, and accepts those that pass."""
    answers = {name: answer(to, value) for name, value in values.items()}
    found = proofs.problems(answers, {}, to)
    for name in answers.keys() - found.keys():
        proofs.accept(name, answers[name], to)
    return found


def test_log_probs_that_stand_still_while_the_learner_s_move_are_old_weights() -> None:
    """Both are within the learner's tolerance: the movement alone tells."""
    proofs = Proofs(TOLERANCES)
    assert problems(proofs, report(1, 1.0), a=1.0) == {}
    found = problems(proofs, report(2, 1.05), a=1.0)
    assert found == {
        "a": "its log-probs moved by 0, the learner's by 0.1: it serves the weights that it had "
        "before"
    }
    assert problems(proofs, report(2, 1.05), a=1.05) == {}


def test_a_step_too_small_for_the_probe_is_proven_by_the_receipt_alone() -> None:
    proofs = Proofs(TOLERANCES)
    assert problems(proofs, report(1, 1.0), a=1.0) == {}
    assert problems(proofs, report(2, 1.0 + 4e-3), a=1.0) == {}


def test_equal_weights_need_not_move() -> None:
    """A learning rate of 0, or a step that was skipped: the hash says that nothing changed."""
    proofs = Proofs(TOLERANCES)
    assert problems(proofs, report(1, 1.0, "same"), a=1.0) == {}
    assert problems(proofs, report(2, 1.05, "same"), a=1.0) == {}


def test_small_steps_add_up() -> None:
    """An engine that stands still passes while nothing can be seen, not for ever."""
    proofs = Proofs(TOLERANCES)
    assert problems(proofs, report(1, 1.0), still=1.0, moving=1.0) == {}
    assert problems(proofs, report(2, 1.002), still=1.0, moving=1.002) == {}
    assert proofs.holds("still") == "hash2"
    assert problems(proofs, report(3, 1.0045), still=1.0, moving=1.0045) == {}
    assert list(problems(proofs, report(4, 1.007), still=1.0 + 2**-20, moving=1.007)) == ["still"]


def test_a_new_engine_has_nothing_to_have_moved_from() -> None:
    proofs = Proofs(TOLERANCES)
    assert problems(proofs, report(1, 1.0), a=1.0) == {}
    assert problems(proofs, report(2, 1.05), a=1.05, joiner=1.05) == {}
    proofs.forget("a")
    assert proofs.holds("a") is None
    assert problems(proofs, report(3, 1.1), a=1.1) == {}


def test_the_engine_nearest_to_the_learner_is_the_standard_of_its_peers() -> None:
    proofs = Proofs(TOLERANCES)
    found = problems(proofs, report(1, 1.0), odd=1.03, a=1.005, b=1.007)
    assert list(found) == ["odd"]
    assert "from engine a's" in found["odd"]


def test_a_peer_that_serves_already_is_the_standard() -> None:
    proofs, to = Proofs(TOLERANCES), report(1, 1.0)
    passed = {"a": answer(to, 1.02)}
    assert list(proofs.problems({"b": answer(to, 1.0)}, passed, to)) == ["b"]
    assert proofs.problems({"b": answer(to, 1.021)}, passed, to) == {}


def test_nobody_is_measured_by_an_engine_that_failed() -> None:
    proofs = Proofs(TOLERANCES)
    found = problems(proofs, report(1, 1.0), broken=3.0, a=1.02)
    assert list(found) == ["broken"]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_infinite_gap_in_any_row(row: int, value: float) -> None:
    ours = [np.zeros(3, np.float32), np.zeros(2, np.float32)]
    theirs = [values.copy() for values in ours]
    theirs[row][1] = value
    assert largest_gap(ours, theirs) == np.inf
    assert largest_gap(theirs, theirs) == np.inf
    assert largest_gap(ours, ours) == 0.0


def test_rows_of_other_lengths_do_not_agree() -> None:
    ours = [np.zeros(3, np.float32)]
    assert largest_gap(ours, [np.zeros(1, np.float32)]) == np.inf
    assert largest_gap(ours, []) == np.inf


def test_the_gap_is_the_largest_of_all_rows() -> None:
    ours = [np.zeros(3, np.float32), np.zeros(2, np.float32)]
    theirs = [np.array([0, -0.25, 0], np.float32), np.array([0.125, 0], np.float32)]
    assert largest_gap(ours, theirs) == 0.25


def test_the_widest_gap_is_that_of_the_two_that_differ_most() -> None:
    draw = np.random.default_rng(0)
    probes = [[draw.normal(size=n).astype(np.float32) for n in (3, 5)] for _ in range(6)]
    pairs = [largest_gap(one, other) for one in probes for other in probes]
    assert widest_gap(probes) == pytest.approx(max(pairs))
    assert widest_gap(probes[:1]) == 0.0
    assert widest_gap([*probes, [np.zeros(3, np.float32)]]) == np.inf
    assert widest_gap([*probes, [np.full(3, np.nan, np.float32), probes[0][1]]]) == np.inf


def test_probe_rows_fit_and_are_always_the_same() -> None:
    rows = probe_rows(vocab_size=10, context=12)
    assert [len(row) for row in rows] == [5, 9, 12, 12]
    assert all(row.min() >= 0 and row.max() < 10 for row in rows)
    assert all((a == b).all() for a, b in zip(rows, probe_rows(10, 12), strict=True))
