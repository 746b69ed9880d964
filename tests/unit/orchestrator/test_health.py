"""The verdict on workers, on a clock that the test moves."""

from __future__ import annotations

import pytest

from manta.actors.processes import HostFigures, Known, ProcessFigures
from manta.actors.vitals import Identity, LifeSign
from manta.orchestrator.health import Health, Rules

HERE = Identity(Known("here", 7, 1.0), "node", "/log", 3)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sign(
    stands: float = 0.0, cpu: float = 1.0, is_stopped: bool = False, doing: str = ""
) -> LifeSign:
    state = "its process 8 is stopped (state T)" if is_stopped else "sleeping (state S)"
    return LifeSign(stands, doing, ProcessFigures(state, is_stopped, cpu, 10, 20), 30)


class Case:
    """One engine under watch; time goes by in seconds, in each of which the driver looks."""

    def __init__(self, frozen_after: float = 10.0, start: float = 50.0) -> None:
        self.clock = Clock()
        self.health = Health(Rules(2.0, frozen_after, start), self.clock)
        self.health.begin("a", "rollout", "policy-0")
        self.found: list[tuple[float, str]] = []

    def go(self, seconds: int, *signs: LifeSign) -> None:
        """Each sign is given again every second."""
        for _ in range(seconds):
            self.clock.now += 1
            for each in signs:
                self.health.heard("a", each)
            self.found += [(self.clock.now - 100, f.why) for f in self.health.look()]

    @property
    def state(self) -> str:
        return self.health.workers()[0].state


def test_a_worker_without_signs_is_frozen_once_its_deadline_has_passed() -> None:
    case = Case()
    case.health.introduced("a", HERE)
    case.go(5, sign())
    case.go(8)
    assert (case.state, case.found) == ("silent", [])
    case.go(10)
    assert [at for at, _ in case.found] == [16]
    assert "no sign of life for 11 s" in case.found[0][1]
    assert case.state == "frozen"
    assert "rollout policy-0 (process 7 on here), last sign 18 s ago" in case.health.witness()


def test_a_worker_that_starts_has_a_deadline_of_its_own() -> None:
    case = Case()
    case.go(50)
    assert (case.state, case.found) == ("starting", [])
    case.go(2)
    assert case.found[0][0] == 51
    assert "has not started" in case.found[0][1]


def test_a_worker_that_no_node_has_room_for_is_not_starting_yet() -> None:
    case = Case()
    assert not case.health.is_any_late(3)
    case.go(3)
    assert case.health.is_any_late(3)
    [news] = case.health.unplaced({"a": "2 CPU", "b": "1 GPU"})
    assert (news.name, news.state) == ("policy-0", "waiting")
    case.go(300)
    assert case.health.unplaced({"a": "2 CPU"}) == []
    assert (case.state, case.found) == ("waiting", [])
    assert "policy-0 waits for a node with room for it (2 CPU) for 303 s" in case.health.witness()
    assert case.health.unplaced({}) == []
    case.go(50)
    assert (case.state, case.found) == ("starting", [])
    case.go(1)
    assert "its constructor hangs" in case.found[0][1]


def test_a_worker_that_came_up_waits_for_nothing() -> None:
    case = Case()
    case.health.unplaced({"a": "2 CPU"})
    case.health.introduced("a", HERE)
    assert case.health.unplaced({"a": "2 CPU"}) == []
    case.go(5, sign())
    assert case.state == "alive"
    assert not case.health.is_any_late(0)


def test_a_worker_that_serves_has_started_though_nobody_was_introduced_to_it() -> None:
    case = Case()
    case.go(3)
    case.health.serving("a")
    case.go(3)
    case.health.serving("a")
    case.go(7)
    assert case.state == "silent"
    case.go(1)
    assert [at for at, _ in case.found] == [14]
    assert "no sign of life for 11 s" in case.found[0][1]


def test_a_loop_that_stands_without_computing_is_frozen_and_one_that_computes_is_busy() -> None:
    stuck, busy = Case(), Case()
    for case, grows in ((stuck, 0.0), (busy, 0.5)):
        case.health.introduced("a", HERE)
        case.go(2, sign())
        for i in range(20):
            case.go(1, sign(stands=3.0 + i, cpu=1.0 + grows * i, doing="wait (lock.py:3)"))
    assert [at for at, _ in stuck.found] == [14]
    assert "without computing, in wait (lock.py:3)" in stuck.found[0][1]
    assert busy.found == [] and busy.state == "busy"
    assert [each.name for each in busy.health.newly_busy()] == ["policy-0"]
    assert busy.health.newly_busy() == []
    assert "whose event loop stands in wait" in busy.health.witness()


def test_a_worker_whose_own_process_is_stopped_is_frozen() -> None:
    case = Case()
    case.health.introduced("a", HERE)
    case.go(9, sign(is_stopped=True))
    case.go(1, sign())
    case.go(11, sign(is_stopped=True))
    assert case.found == []
    case.go(1, sign(is_stopped=True))
    assert "process 8 is stopped" in case.found[0][1]


def test_a_driver_that_was_stopped_itself_blames_nobody() -> None:
    case = Case()
    case.health.introduced("a", HERE)
    case.go(5, sign())
    case.clock.now += 500
    assert case.health.look() == []
    case.go(11)
    assert len(case.found) == 1


def test_a_relayed_sign_ages_only_where_the_messenger_says_so() -> None:
    case = Case()
    case.health.introduced("a", HERE)
    case.health.heard("a", sign(), 1.0)
    case.go(100)
    assert case.found == []
    case.health.heard("a", sign(), 11.0)
    case.go(1)
    assert "no sign of life for 11 s" in case.found[0][1]


def test_reports_say_what_is_known() -> None:
    case = Case()
    assert case.health.witness() == "Not answering: rollout policy-0, starting for 0 s."
    case.health.introduced("a", HERE)
    figures = HostFigures(0.5, 0.25, 1000)
    case.health.heard("a", LifeSign(0, "generate x2", sign().process, 30, figures))
    (worker,) = case.health.workers()
    assert (worker.peak_memory, worker.device_peak, worker.doing) == (20, 30, "generate x2")
    assert case.health.hosts() == {"here": figures}
    assert case.health.witness() == (
        "Every worker gives signs of life. rollout policy-0 (process 7 on here) is in generate x2."
    )
    case.health.gone("a")
    assert case.health.workers() == []
    assert [each.key for each in case.health.departed()] == ["a"]


@pytest.mark.parametrize("seconds", [3, 9])
def test_a_short_silence_is_forgotten(seconds: int) -> None:
    case = Case()
    case.health.introduced("a", HERE)
    for _ in range(4):
        case.go(1, sign())
        case.go(seconds)
    assert case.found == []
