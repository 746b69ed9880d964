from __future__ import annotations

from manta.actors.lanes import Admission
from manta.envs.records import GroupId
from manta.orchestrator.expected_lengths import ExpectedLengths


def test_the_longest_start_first_and_new_tasks_are_like_the_mean() -> None:
    lengths = ExpectedLengths()
    admissions = [Admission(GroupId(0, place, 0), index) for place, index in enumerate(range(4))]
    unknown = [admission.index for admission in lengths.longest_first(admissions)]
    assert unknown == [0, 1, 2, 3], "nothing is known: the order stays"
    lengths.note(0, [10, 20])
    lengths.note(3, [100, 120])
    lengths.note(0, [60])
    order = [admission.index for admission in lengths.longest_first(admissions)]
    assert order == [3, 1, 2, 0], "110, 62, 62, 30"
    ranked = lengths.longest_first(admissions)
    assert [admission.rank for admission in ranked] == [(0, 0, i) for i in range(4)]
    assert max(admission.rank for admission in ranked) < Admission(GroupId(0, 4, 0), 9).rank
    assert lengths.longest_first([]) == []
