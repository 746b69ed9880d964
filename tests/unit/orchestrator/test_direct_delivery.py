"""Publishing over a direct transport: ranks send once, what goes wrong comes through the store."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import ray

from manta.actors.hand_over import HandedOver, HandOver, Receiver
from manta.actors.weights import Receipt
from manta.envs.records import WeightVersion
from manta.orchestrator.probe import Tolerances
from manta.orchestrator.publish import Publisher
from manta.orchestrator.wait import Waits
from tests.unit.orchestrator.test_publish import PROBE, Client, ScriptedRollout, report_of

SENT = 500


class MeetingRollout(ScriptedRollout):
    """Engines whose processes a learner rank brings weights to; a fault is one of the meeting if it
    begins with `meeting`: a wrong `meeting hash`, or `meeting death`, found when it is paused."""

    def receiver(self, name: str) -> Receiver:
        return Receiver(name, None, 1)  # type: ignore[arg-type]

    async def pause(self, name: str):  # type: ignore[no-untyped-def]
        rows = await super().pause(name)
        self._now.setdefault(name, next(self._faults[name], 0.0))
        if self._now[name] == "meeting death":
            raise ray.exceptions.ActorDiedError()
        return rows

    def meet(self, name: str, version: WeightVersion) -> Receipt:
        self.events.append(f"{name} direct")
        self._step[name] = version.step
        fault = self._now.pop(name)
        self._now[name] = 0.0
        return Receipt(version, "other" if fault == "meeting hash" else f"hash{version.step}")


class RankClient(Client):
    """The learner's side; `failures` says of each meeting why it fails, empty if it does not."""

    def __init__(self, rollout: MeetingRollout, failures: Sequence[str] = ()) -> None:
        super().__init__()
        self.orders: list[HandOver] = []
        self._rollout, self._failures = rollout, iter(failures)

    async def hand_over(self, order: HandOver) -> HandedOver:
        self.orders.append(order)
        if order.receivers is None:
            return HandedOver()
        failure = next(self._failures, "")
        if failure:
            return HandedOver(failure=failure)
        receipts = {each.name: self._rollout.meet(each.name, order.version)
                    for each in order.receivers}  # fmt: skip
        return HandedOver(receipts, SENT)

    @property
    def met(self) -> list[list[str] | None]:
        return [
            None if order.receivers is None else [each.name for each in order.receivers]
            for order in self.orders
        ]


def publisher_of(
    failures: Sequence[str] = (), **faults: list[str | float]
) -> tuple[Publisher, MeetingRollout, RankClient]:
    rollout = MeetingRollout(faults)
    client = RankClient(rollout, failures)
    tolerances = Tolerances(learner=1e-3, engines=1e-3)
    publisher = Publisher(rollout, client, PROBE, tolerances, Waits(), 10.0, is_direct=True)  # type: ignore[arg-type]
    return publisher, rollout, client


async def test_all_engines_are_paused_meet_and_resume_verified() -> None:
    publisher, rollout, client = publisher_of(a=[], b=[])
    for step in (1, 2):
        published = await publisher.publish(report_of(step))
        assert published.retired == ()
        assert (published.num_bytes, published.resent) == (2 * SENT, 0)
    assert client.met == [["a", "b"], ["a", "b"]]
    assert [order.number for order in client.orders] == [1, 2]
    assert client.asked == [], "nothing went through the weight store"
    assert rollout.of("a") == ["pause", "direct", "resume", "serve"] * 2
    events = rollout.events
    assert events.index("b pause") < events.index("a direct"), "all are paused before any receives"


async def test_a_wrong_hash_is_sent_again_in_full_through_the_store() -> None:
    publisher, rollout, client = publisher_of(a=["meeting hash"], b=[])
    published = await publisher.publish(report_of(1))
    assert published.retired == ()
    assert published.resent == 1
    [(name, problem)] = published.problems
    assert name == "a"
    assert "its receipt is for weights 1.1 with hash other" in problem
    assert client.met == [["a", "b"], None]
    assert client.asked == [(1, None, True)]
    assert rollout.of("a") == ["pause", "direct", "pause", "full", "resume", "serve"]
    assert rollout.of("b") == ["pause", "direct", "resume", "serve"]


async def test_a_meeting_that_fails_fails_for_all_and_the_next_publish_meets_again() -> None:
    publisher, rollout, client = publisher_of(["nccl failed: no route"], a=[], b=[])
    published = await publisher.publish(report_of(1))
    assert published.retired == ()
    assert published.resent == 2
    assert dict(published.problems) == dict.fromkeys("ab", "nccl failed: no route")
    assert rollout.of("b") == ["pause", "pause", "full", "resume", "serve"]
    await publisher.publish(report_of(2))
    assert client.met == [["a", "b"], None, ["a", "b"]]


async def test_a_dead_engine_is_not_met() -> None:
    publisher, rollout, client = publisher_of(a=["meeting death"], b=[])
    published = await publisher.publish(report_of(1))
    assert published.retired == ("a",)
    assert published.problems == (("a", "it died"),)
    assert client.met == [["b"]]
    assert rollout.names == ["b"]


@pytest.mark.parametrize("direct", ["nccl", "ipc"])
def test_the_store_s_own_parcels_go_through_ray(direct: str) -> None:
    from manta.actors.transports.object_store import ObjectStoreTransport
    from manta.actors.transports.registry import build_transport
    from manta.actors.transports.settings import TransportSettings

    settings = TransportSettings(direct)
    assert settings.direct == direct
    assert isinstance(build_transport(settings), ObjectStoreTransport)
    assert TransportSettings("disk", "/x").direct is None
