"""Handing the device on where engines do not do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from manta.actors.device_turns import NotYourTurn
from manta.actors.step_work import Adopt, StepReport, StepWork
from manta.envs.records import WeightVersion
from manta.orchestrator.shared_device import SharedDevice
from manta.orchestrator.wait import DeadlineMissed, Waits
from tiny import groups_of, plan_of

WORK = StepWork("rl", plan_of(groups_of((1,))), (), (), 0.1)


class Drowsy:
    """Engines that sleep for good or `fail` or `hang`."""

    names = ("a", "b")

    def __init__(self, how: str = "") -> None:
        self.how = how
        self.asleep: list[str] = []

    async def sleep(self, name: str) -> bool:
        if self.how == "fail" and name == "b":
            raise RuntimeError("cannot sleep")
        if self.how == "hang" and name == "b":
            await asyncio.sleep(60)
        self.asleep.append(name)
        return True


class Slot:
    def __init__(self, engines: Drowsy) -> None:
        self._engines = engines
        self.taken: list[tuple[int, int]] = []

    async def put(self, work: StepWork) -> None:
        self.taken.append((work.plan.step, len(self._engines.asleep)))

    async def result(self, step: int) -> Mapping[int, StepReport]:
        return {}

    async def adopt(self, order: Adopt) -> Mapping[int, StepReport]:
        self.taken.append((-order.number, len(self._engines.asleep)))
        return {}


def device_of(how: str = "", deadline: float = 5.0) -> tuple[SharedDevice, Drowsy, Slot]:
    engines = Drowsy(how)
    slot = Slot(engines)
    return SharedDevice(engines, slot, Waits(), deadline), engines, slot


async def test_a_step_is_handed_over_once_every_engine_sleeps() -> None:
    device, engines, slot = device_of()
    with device.publishing():
        assert device.turns.state == "waking"
    await device.put(WORK)
    await device.put(replace(WORK, plan=replace(WORK.plan, step=1)))
    assert engines.asleep == ["a", "b"]
    assert slot.taken == [(0, 2), (1, 2)]


async def test_other_weights_are_taken_in_the_learner_s_turn_and_then_published() -> None:
    device, engines, slot = device_of()
    with device.publishing():
        assert device.turns.state == "waking"
    order = Adopt(1, "rl", None, WeightVersion(0, 0))  # type: ignore[arg-type]
    await device.adopt(order)
    assert (engines.asleep, slot.taken) == (["a", "b"], [(-1, 2)])
    with device.publishing():
        assert device.turns.owner == "engines"


@pytest.mark.parametrize(("how", "error"), [("fail", RuntimeError), ("hang", DeadlineMissed)])
async def test_an_engine_that_does_not_sleep_breaks_the_turn(
    how: str, error: type[Exception]
) -> None:
    device, _, slot = device_of(how, deadline=0.1)
    with device.publishing():
        assert device.turns.owner == "engines"
    with pytest.raises(error, match=r"cannot sleep|engines a, b to sleep"):
        await device.put(WORK)
    assert device.turns.state == "broken"
    with pytest.raises(NotYourTurn):
        await device.put(WORK)
    with pytest.raises(NotYourTurn), device.publishing():
        raise AssertionError("nobody publishes on a device of unknown owner")
    assert slot.taken == []


async def test_a_publish_that_fails_breaks_the_turn() -> None:
    device, _, slot = device_of()
    with pytest.raises(ZeroDivisionError), device.publishing():
        raise ZeroDivisionError
    assert device.turns.state == "broken"
    with pytest.raises(NotYourTurn):
        await device.put(WORK)
    assert slot.taken == []
