import pytest

from manta.envs.protocols import Services
from manta.envs.rewards.distinct import Distinct
from manta.envs.rewards.exact import Exact
from manta.envs.rewards.expression import Expression
from manta.envs.rewards.format import Format
from manta.envs.rewards.length import Length
from manta.envs.rewards.rarity import Rarity
from tests.unit.envs.scripted import said, task

SERVICES = Services()


async def test_exact() -> None:
    reward = Exact(after="####")
    assert await reward.score(task("1080"), said("so\n#### $1,080.00"), SERVICES) == 1.0
    assert await reward.score(task("1080"), said("1080"), SERVICES) == 0.0
    assert Exact().judge(task("Paris"), " Paris\n") == 1.0
    assert Exact().judge(task("Paris"), "paris") == 0.0
    assert Exact().judge(task(0), "") == 0.0
    with pytest.raises(ValueError, match="task t: reference None"):
        Exact().judge(task(None), "1")


def test_format() -> None:
    reward = Format(r"<think>.*</think>[0-9]+", max_characters=40)
    assert reward.judge(task(), "<think>a</think>12") == 1.0
    assert reward.judge(task(), "<think>a</think>12 ") == 0.0
    assert reward.judge(task(), "<think>a\nb</think>12") == 0.0
    assert reward.judge(task(), "<think>" + "a" * 40 + "</think>1") == 0.0
    with pytest.raises(ValueError, match=r"pattern '\(' at character 0"):
        Format("(")
    with pytest.raises(ValueError, match="at least 1"):
        Format("a", max_characters=0)


@pytest.mark.parametrize(("num_tokens", "value"), [(0, 1), (10, 1), (15, 0.75), (30, 0), (99, 0)])
async def test_length_falls_linearly(num_tokens: int, value: float) -> None:
    assert await Length(10, 30).score(task(), said("x", num_tokens), SERVICES) == value


def test_length_bounds() -> None:
    with pytest.raises(ValueError, match="0 <= target < limit"):
        Length(5, 5)


async def test_distinct_shares_among_the_same_answers() -> None:
    group = [said(text) for text in ("5", "5.0", "6", "", " ")]
    assert await Distinct().score_group(task(), group, SERVICES) == [0.5, 0.5, 1.0, 0.5, 0.5]


async def test_rarity_over_the_whole_step() -> None:
    groups = [
        (task(name="a"), [said("1"), said("2")]),
        (task(name="b"), [said("1.0"), said("x")]),
    ]
    assert await Rarity().score_batch(groups, SERVICES) == [[0.5, 0.75], [0.5, 0.75]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(7+5)*2*1", 1),
        ("2*(5+7)/1 = 24", 1),
        ("24*1", 0),
        ("(7+5)*2", 0),
        ("7+5+2+1", 0),
        ("(7+5)*2*1*1/1", 0),
        ("(7+5)*2**1", 0),
        ("(7+5)*2//1", 0),
        ("-(7+5)*2*1", 0),
        ("(7+5)*2*1.", 0),
        ("7/(5-5)+2+1", 0),
        ("__import__('os')", 0),
        ("((((7+5)*2*1", 0),
        ("(" * 90 + "7", 0),
        ("", 0),
        ("1+" * 200 + "1", 0),
    ],
)
def test_expression(text: str, value: float) -> None:
    problem = task({"numbers": [7, 5, 2, 1], "target": 24})
    assert Expression().judge(problem, text) == value


def test_expression_divides_by_zero_without_a_score() -> None:
    assert Expression().judge(task({"numbers": [7, 5, 5], "target": 0}), "7/(5-5)") == 0.0


def test_expression_after_a_marker() -> None:
    problem = task({"numbers": [7, 5], "target": 12})
    assert Expression(after="Answer:").judge(problem, "5*7 no. Answer: 7+5\nok") == 1.0
    with pytest.raises(ValueError, match="task t: its reference must be"):
        Expression().judge(task("12"), "7+5")


def test_versions_follow_the_parameters() -> None:
    versions = {Exact().version, Exact("last_number").version, Exact(after="#").version}
    assert len(versions) == 3
    assert Exact().version == Exact().version
    assert Length(1, 2).version.startswith("length(target=1, limit=2)#")
