from __future__ import annotations

from dataclasses import replace

import numpy as np

from manta.actors.drafts import Drafts
from manta.envs.records import VersionSpan, WeightVersion
from tests.unit.actors.completions import made, request


def test_without_a_loss_requests_go_out_and_completions_come_back_as_they_are() -> None:
    requests = [request(5, 3), request(4, first=9)]
    drafts = Drafts(requests)
    sent = drafts.open()
    assert [(r.seeds, r.budgets, r.drawn) for r in sent] == [((0, 1), (5, 3), 0), ((9,), (4,), 0)]
    answer = [
        [made([1, 2], "stop", (0, 3)), made([4, 5, 6], "length", (0, 3), (2, 4))],
        [made([], "abort")],
    ]
    drafts.finish(answer)
    assert drafts.open() == []
    for found, given in zip(drafts.completions(), answer, strict=True):
        for one, other in zip(found, given, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.logprobs.tolist() == other.logprobs.tolist()
            assert one.weight_versions == other.weight_versions
            assert one.finish_reason == other.finish_reason


def test_what_was_seen_is_a_prefix_and_the_rest_is_asked_for() -> None:
    drafts = Drafts([request(10, 10, 10, 10, stops=(99,))])
    drafts.open()
    assert drafts.known() == [[0, 0, 0, 0]]
    drafts.grow(
        [[made([7, 8], "abort", (0, 1)), made([5, 99], "stop", (0, 1)), made([]), made([])]]
    )
    assert drafts.known() == [[2, 2, 0, 0]]
    drafts.grow(
        [[made([9], "abort", (0, 1), (2, 2)), made([], "stop", (0, 1)), made([]), made([])]]
    )
    assert drafts.num_made == 5
    fresh, rest = drafts.open()
    assert (fresh.prefix.tolist(), fresh.seeds, fresh.budgets) == ([1, 2], (2, 3), (10, 10))
    assert (rest.prefix.tolist(), rest.seeds, rest.budgets) == ([1, 2, 7, 8, 9], (0,), (7,))
    assert (fresh.drawn, rest.drawn) == (0, 3)
    assert drafts.known() == [[0, 0], [0]]
    drafts.finish(
        [
            [made([3], "length", (0, 2)), made([4], "length", (0, 2))],
            [made([10, 11], "stop", (0, 2), (1, 3))],
        ]
    )
    assert drafts.open() == []
    [[first, second, third, _]] = drafts.completions()
    assert first.token_ids.tolist() == [7, 8, 9, 10, 11]
    assert first.logprobs.tolist() == [-7, -8, -9, -10, -11]
    assert first.weight_versions == (
        VersionSpan(0, WeightVersion(1, 0)),
        VersionSpan(2, WeightVersion(2, 0)),
        VersionSpan(4, WeightVersion(3, 0)),
    )
    assert (second.token_ids.tolist(), second.finish_reason) == ([5, 99], "stop")
    assert third.token_ids.dtype == np.int32
    assert third.logprobs.dtype == np.float32


def test_a_second_loss_goes_on_from_what_both_engines_made() -> None:
    drafts = Drafts([request(9)])
    for step, ids in enumerate(([1, 2], [3, 4, 5])):
        drafts.open()
        drafts.grow([[made(ids, "abort", (0, step))]])
    [rest] = drafts.open()
    assert (rest.prefix.tolist(), rest.budgets, rest.drawn) == ([1, 2, 1, 2, 3, 4, 5], (4,), 5)
    drafts.finish([[made([6], "stop", (0, 1))]])
    [[whole]] = drafts.completions()
    assert whole.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert whole.weight_versions == (
        VersionSpan(0, WeightVersion(0, 0)),
        VersionSpan(2, WeightVersion(1, 0)),
    )


def test_the_last_answer_repeats_what_was_seen_and_is_taken_once() -> None:
    drafts = Drafts([request(9)])
    drafts.open()
    drafts.grow([[made([1, 2, 3], "abort", (0, 1))]])
    drafts.finish([[made([1, 2, 3, 4, 5], "stop", (0, 1), (3, 2))]])
    [[whole]] = drafts.completions()
    assert whole.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert [span.start for span in whole.weight_versions] == [0, 3]


def test_a_sample_whose_last_token_was_seen_is_not_asked_for() -> None:
    """The engine died between the last token and the word that it was the last."""
    drafts = Drafts([request(3, 9, stops=(99,))])
    drafts.open()
    drafts.grow([[made([1, 2, 3], "abort", (0, 1)), made([4, 99], "abort", (0, 1))]])
    assert drafts.open() == []
    [completions] = drafts.completions()
    assert [c.finish_reason for c in completions] == ["length", "stop"]


def test_an_engine_that_has_not_begun_tells_nothing() -> None:
    drafts = Drafts([request(3)])
    drafts.open()
    drafts.grow([])
    [again] = drafts.open()
    assert (again.drawn, again.budgets) == (0, (3,))


def test_redundant_samples_are_not_asked_for_again() -> None:
    """An engine is lost under a request that wants two of four: one has ended."""
    drafts = Drafts([replace(request(9, 9, 9, 9, stops=(99,)), enough=2), request(5, first=8)])
    assert [r.enough for r in drafts.open()] == [2, None]
    drafts.grow(
        [
            [made([1], "abort", (0, 1)), made([5, 99], "stop", (0, 1)),
             made([1, 2, 3], "abort", (0, 1)), made([])],
            [made([])],
        ]
    )  # fmt: skip
    [rest, other] = drafts.open()
    assert (rest.seeds, rest.drawn, rest.enough) == ((2,), 3, None)
    assert other.seeds == (8,)
    drafts.finish([[made([4, 99], "stop", (0, 2))], [made([6], "length", (0, 2))]])
    assert drafts.open() == []
    [group, _] = drafts.completions()
    assert [c.finish_reason for c in group] == ["abort", "stop", "stop", "abort"]
    assert [c.token_ids.tolist() for c in group] == [[1], [5, 99], [1, 2, 3, 4, 99], []]


def test_a_request_that_had_enough_is_done_though_its_engine_is_lost() -> None:
    drafts = Drafts([replace(request(9, 9, 9), enough=1), request(5, first=8)])
    drafts.open()
    drafts.grow([[made([1]), made([5], "stop", (0, 1)), made([])], [made([7])]])
    [other] = drafts.open()
    assert other.seeds == (8,)


def test_a_request_that_had_not_begun_keeps_its_redundant_samples() -> None:
    drafts = Drafts([replace(request(9, 9, 9), enough=2)])
    drafts.open()
    drafts.grow([])
    [again] = drafts.open()
    assert (again.seeds, again.enough) == ((0, 1, 2), 2)
