"""The states of a shared device."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from manta.actors.device_place import DevicePlace, beside
from manta.actors.device_turns import TRANSITIONS, DeviceTurns, NotYourTurn, TurnWord

WORDS: tuple[TurnWord, ...] = ("wake", "serve", "sleep", "train", "break")


def test_random_words_never_hand_the_device_on_but_by_sleeping_and_waking() -> None:
    generator = random.Random(0)
    for _ in range(300):
        turns = DeviceTurns()
        seen = [turns.state]
        for _ in range(40):
            word = generator.choice(WORDS[: generator.choice((4, 4, 4, 4, 5))])
            before = turns.state
            if word in TRANSITIONS[before]:
                turns.say(word)
                seen.append(turns.state)
            else:
                with pytest.raises(NotYourTurn, match=f"is {before} .*'{word}' is no way on"):
                    turns.say(word)
                assert turns.state == before
        for old, new in pairwise(seen):
            if old == "broken":
                assert new == "broken"
            if new == "training":
                assert old == "falling_asleep"
            if new == "generating":
                assert old == "waking"


def test_the_owner_follows_the_turn() -> None:
    turns = DeviceTurns()
    owners = [turns.owner]
    for word in ("wake", "serve", "sleep", "train", "break"):
        turns.say(word)  # type: ignore[arg-type]
        owners.append(turns.owner)
    assert owners == ["learner", "engines", "engines", "engines", "learner", "unknown"]


def test_every_second_is_counted_once() -> None:
    now = [100.0]
    turns = DeviceTurns(lambda: now[0])
    for seconds, word in ((5.0, "wake"), (1.0, "serve"), (7.0, "sleep"), (2.0, "train")):
        now[0] += seconds
        turns.say(word)  # type: ignore[arg-type]
    now[0] += 0.5
    assert turns.take_metrics() == {
        "device/awake_seconds": 7.0,
        "device/asleep_seconds": 5.5,
        "device/turning_seconds": 3.0,
    }
    now[0] += 4.0
    assert turns.take_metrics()["device/asleep_seconds"] == 4.0


def test_engines_stand_on_the_devices_of_their_ranks() -> None:
    ranks = [DevicePlace("n1", ("0",)), DevicePlace("n1", ("3",)), DevicePlace("n2", ("0",))]
    assert beside(ranks, 3, 1) == ranks
    pair = [*ranks[:2], *ranks[:2]]
    assert beside(pair, 2, 2) == [DevicePlace("n1", ("0", "3"))] * 2
    assert beside([DevicePlace("n1")], 1, 0) == [DevicePlace("n1")]
    assert DevicePlace("n1").environment() == {}
    seen = DevicePlace("n1", ("0", "3")).environment()
    assert seen["CUDA_VISIBLE_DEVICES"] == "0,3"


@pytest.mark.parametrize(
    ("ranks", "workers", "devices", "message"),
    [
        ([DevicePlace("n1")], 2, 0, "2 engines x 1 devices beside 1 learner ranks"),
        ([DevicePlace("n1")], 1, 1, r"wants 1 GPUs on each learner rank, ranks 0 to 0 have \[0\]"),
        ([DevicePlace("n1", ("0",))], 1, 0, r"wants 0 GPUs on each learner rank"),
        (
            [DevicePlace("n1", ("0",)), DevicePlace("n2", ("0",))],
            1,
            2,
            "ranks 0 to 1, and Ray placed these on several nodes",
        ),
    ],
)
def test_ranks_that_offer_no_place_are_refused(
    ranks: list[DevicePlace], workers: int, devices: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        beside(ranks, workers, devices)
