"""What the strict loader accepts, and the exact words for what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from manta.envs.records import Json
from manta.orchestrator import strict, yaml_tree
from manta.orchestrator.strict import RunFileError


@dataclass(frozen=True)
class Wheel:
    size: float
    kind: Literal["road", "mud"] = "road"


@dataclass(frozen=True)
class Car:
    name: str
    wheels: tuple[Wheel, ...] = ()
    seats: int = 4
    price: float | None = None
    gears: tuple[float, float] = (1.0, 2.0)
    electric: bool = False
    extras: Mapping[str, Json] = field(default_factory=dict)
    by_name: Mapping[str, Wheel] = field(default_factory=dict)
    doors: int | Wheel = 2

    def __post_init__(self) -> None:
        if self.seats < 0:
            raise ValueError(f"seats is {self.seats}: must not be negative")


def read(text: str) -> tuple[Car | None, list[str]]:
    problems: list[str] = []
    node = yaml_tree.parse(text, "car.yaml", problems)
    return strict.read(node, Car, problems), problems


ACCEPTED = [
    ("name: a", Car("a")),
    ("name: no", Car("no")),
    ("{name: a, price: 1e-5}", Car("a", price=1e-5)),
    ("{name: a, price: 2}", Car("a", price=2.0)),
    ("{name: a, price: -1.5E+3}", Car("a", price=-1500.0)),
    ("{name: a, price: null}", Car("a")),
    ("{name: a, price: ~}", Car("a")),
    ("{name: '1', electric: true}", Car("1", electric=True)),
    ("{name: a, gears: [1, 2.5]}", Car("a", gears=(1.0, 2.5))),
    ("{name: a, wheels: [{size: 1}, {size: 2, kind: mud}]}",
     Car("a", wheels=(Wheel(1.0), Wheel(2.0, "mud")))),
    ("{name: a, by_name: {front: {size: 3}}}", Car("a", by_name={"front": Wheel(3.0)})),
    ("{name: a, extras: {x: 1e-3, y: [on, null, {z: 2024-01-01}]}}",
     Car("a", extras={"x": 1e-3, "y": ["on", None, {"z": "2024-01-01"}]})),
    ("{name: a, doors: 3}", Car("a", doors=3)),
    ("{name: a, doors: {size: 1}}", Car("a", doors=Wheel(1.0))),
    ("{name: a, wheels: [&w {size: 1}, *w]}", Car("a", wheels=(Wheel(1.0), Wheel(1.0)))),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ACCEPTED, ids=[text for text, _ in ACCEPTED])
def test_accepts(text: str, expected: Car) -> None:
    car, problems = read(text)
    assert problems == []
    assert car == expected
    assert car is not None and (car.price is None or type(car.price) is float)


REFUSED = [
    ("name: a\nseat: 3", "car.yaml:2: key 'seat': unknown key; did you mean 'seats'?"),
    ("{name: a, by_name: {f: {size: 1, zzz: 2}}}",
     "car.yaml:1: key 'by_name.f.zzz': unknown key; known: size, kind"),
    ("seats: 3", "car.yaml:1: key 'name': missing required key"),
    ("name: a\nwheels:\n  - size: 1\n  - kind: mud",
     "car.yaml:4: key 'wheels[1].size': missing required key"),
    ("name: a\nseats: two",
     "car.yaml:2: key 'seats': expected a whole number (int), found 'two' (str)"),
    ("name: a\nseats: 2.0",
     "car.yaml:2: key 'seats': expected a whole number (int), found 2.0 (float)"),
    ("name: a\nseats: true",
     "car.yaml:2: key 'seats': expected a whole number (int), found True (bool)"),
    ("name: a\nprice: true",
     "car.yaml:2: key 'price': expected a number (float), found True (bool)"),
    ("name: a\nprice: '1e-5'",
     "car.yaml:2: key 'price': expected a number (float), found '1e-5' (str)"),
    ("name: a\nprice: .nan", "car.yaml:2: key 'price': expected a finite number (float), "
     "found nan (float)"),
    ("name: 7",
     "car.yaml:1: key 'name': expected text (str), found 7 (int); put it in quotes"),
    ("name:", "car.yaml:1: key 'name': expected text (str), found nothing (null)"),
    ("name: a\nelectric: yes",
     "car.yaml:2: key 'electric': expected true or false (bool), found 'yes' (str)"),
    ("name: a\ngears: [1]", "car.yaml:2: key 'gears': expected a list of 2, found a list of 1"),
    ("name: a\nwheels: {size: 1}", "car.yaml:2: key 'wheels': expected a list, found a mapping"),
    ("name: a\nwheels: [3]",
     "car.yaml:2: key 'wheels[0]': expected a mapping with the keys size, kind, found 3 (int)"),
    ("name: a\nextras: 3", "car.yaml:2: key 'extras': expected a mapping, found 3 (int)"),
    ("name: a\nwheels: [{size: 1, kind: mut}]",
     "car.yaml:2: key 'wheels[0].kind': expected one of 'road', 'mud', found 'mut' (str); "
     "did you mean 'mud'?"),
    ("name: a\nseats: 3\nname: b", "car.yaml:3: key 'name': given twice (first on line 1)"),
    ("name: a\nextras:\n  x: 1\n  x: 2",
     "car.yaml:4: key 'extras.x': given twice (first on line 3)"),
    ("name: a\nseats: -1", "car.yaml:1: seats is -1: must not be negative"),
    ("name: a\nextras: &e {x: *e}", "car.yaml:2: key 'extras.x': an alias may not contain itself"),
    ("name: a\nextras: {<<: {x: 1}}",
     "car.yaml:2: key 'extras': merge keys (<<) are not supported, write the keys out"),
    ("name: a\nextras: {[1]: 2}", "car.yaml:2: key 'extras': a key must be plain text"),
    ("name: !!python/name:os.system x",
     "car.yaml:1: key 'name': the YAML tag 'tag:yaml.org,2002:python/name:os.system' "
     "is not supported"),
    ("name: !!int x", "car.yaml:1: key 'name': 'x' is no int"),
    ("name: a\n  seats: 3", "car.yaml:2: not valid YAML: mapping values are not allowed here"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refuses(text: str, message: str) -> None:
    _, problems = read(text)
    assert problems[0] == message


def test_all_problems_are_collected() -> None:
    _, problems = read("seats: x\nprice: y\nwheels: [{}]\nfoo: 1")
    assert [problem.split(": ")[1] for problem in problems] == [
        "key 'foo'", "key 'name'", "key 'wheels[0].size'", "key 'seats'", "key 'price'",
    ]  # fmt: skip


def test_an_error_shows_ten_problems_once_each() -> None:
    error = RunFileError([f"p{index}" for index in range(12)] + ["p0"])
    assert str(error).splitlines() == [*(f"p{index}" for index in range(10)), "... and 2 more"]
    assert len(error.problems) == 12


@dataclass(frozen=True)
class Unreadable:
    value: set[int]


def test_a_type_that_no_run_file_can_hold_is_our_error() -> None:
    node = yaml_tree.parse("value: 1", "x.yaml", [])
    with pytest.raises(TypeError, match=r"does not know the type set\[int\]"):
        strict.read(node, Unreadable, [])


@pytest.mark.parametrize(
    "value",
    ["1e-5", "null", "no", "12", "0.5", "", "a: b", "char:0123456789+=", "line\nbreak", "~", ".5",
     1, 0.1, 1e-20, 1e20, -3.0, True, None, [], {}, [1, ["x"]], {"a": {"b": [None, 1e-5]}}],
    ids=repr,
)  # fmt: skip
def test_what_is_dumped_reads_back(value: Json) -> None:
    problems: list[str] = []
    node = yaml_tree.parse(yaml_tree.dump({"value": value}), "x.yaml", problems)
    assert yaml_tree.plain(node) == {"value": value}
    assert problems == []
