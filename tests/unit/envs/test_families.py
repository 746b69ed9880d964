import json
from pathlib import Path

import pytest

from manta.envs.families.arithmetic import Arithmetic
from manta.envs.families.countdown import Countdown
from manta.envs.families.gsm8k import Gsm8k
from manta.envs.families.sorting import Sorting
from manta.envs.protocols import TaskSource
from manta.envs.records import Message, Task
from manta.envs.rewards.expression import parsed
from tests.data import shared_data


def tasks(source: TaskSource) -> list[Task]:
    return [source.task(index) for index in range(len(source))]


def test_arithmetic_enumerates_every_prompt_once() -> None:
    env = Arithmetic(("+", "-"), digits=1, eval_size=20, seed=3)
    train, held_out = tasks(env.source("train")), tasks(env.source("eval"))
    assert (len(train), len(held_out)) == (180, 20)
    prompts = {task.prompt for task in [*train, *held_out]}
    assert prompts == {f"{a}{o}{b}=" for a in range(10) for b in range(10) for o in "+-"}
    by_prompt = {task.prompt: task for task in [*train, *held_out]}
    assert env.gold(by_prompt["3-9="]) == "-6"
    assert by_prompt["3-9="].tags == ("-",)
    assert by_prompt["9+8="].reference == 17


def test_arithmetic_splits_by_its_seed_alone() -> None:
    def held_out(seed: int) -> list[str]:
        return [task.id for task in tasks(Arithmetic(eval_size=50, seed=seed).source("eval"))]

    assert held_out(0) == held_out(0)
    assert set(held_out(0)) != set(held_out(1))
    assert len(Arithmetic().source("train")) + len(Arithmetic().source("eval")) == 10_000
    large = Arithmetic(("*",), digits=9).source("train")
    assert large.task(len(large) - 1) == large.task(len(large) - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": ("/",)}, "operations"),
        ({"operations": ("+", "+")}, "at most once"),
        ({"operations": ()}, "operations"),
        ({"digits": 0}, "digits is 0"),
        ({"digits": 1, "eval_size": 100}, r"1\.\.99"),
        ({"eval_size": 0}, "eval_size is 0"),
    ],
)
def test_arithmetic_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arithmetic(**options)  # type: ignore[arg-type]


def test_sorting_enumerates_every_text_once() -> None:
    env = Sorting(length=3, letters=4, eval_size=14)
    train, held_out = tasks(env.source("train")), tasks(env.source("eval"))
    assert (len(train), len(held_out)) == (50, 14)
    by_prompt = {task.prompt: task for task in [*train, *held_out]}
    assert by_prompt.keys() == {f"{a}{b}{c}=" for a in "abcd" for b in "abcd" for c in "abcd"}
    assert env.gold(by_prompt["dad="]) == "add"
    other = {task.id for task in tasks(Sorting(3, 4, 14, seed=1).source("eval"))}
    assert other != {task.id for task in held_out}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "length is 1"),
        ({"letters": 27}, "letters is 27"),
        ({"length": 2, "letters": 2, "eval_size": 4}, r"1\.\.3"),
    ],
)
def test_sorting_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sorting(**options)


@pytest.mark.parametrize("numbers", [2, 4, 6])
def test_countdown_tasks_have_their_solution(numbers: int) -> None:
    env = Countdown(numbers=numbers, train_size=200, eval_size=50)
    for task in tasks(env.source("eval")):
        env.validate(task)
        assert isinstance(task.reference, dict)
        assert 1 <= task.reference["target"] <= 100  # type: ignore[operator]
        assert len(task.reference["numbers"]) == numbers  # type: ignore[arg-type]
        assert parsed(env.gold(task)) is not None


def test_countdown_splits_share_no_problem() -> None:
    env = Countdown(numbers=2, largest=10, train_size=2000, eval_size=200)

    def problems(source: TaskSource) -> set[tuple[object, ...]]:
        found = set()
        for task in tasks(source):
            assert isinstance(task.reference, dict)
            numbers = task.reference["numbers"]
            found.add((*sorted(numbers), task.reference["target"]))  # type: ignore[type-var,arg-type]
        return found

    assert problems(env.source("train")).isdisjoint(problems(env.source("eval")))
    with pytest.raises(ValueError, match="numbers 1"):
        Countdown(numbers=1)


def write(path: Path, answers: list[str]) -> str:
    rows = [{"question": f" How many {i}? ", "answer": answer} for i, answer in enumerate(answers)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_gsm8k_holds_out_the_last_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [f"It is {i}.\n#### 1,{i:03}" for i in range(5)])
    env = Gsm8k(path, eval_size=2)
    assert [t.id for t in tasks(env.source("train"))] == [f"gsm8k/train/{i}" for i in range(3)]
    assert [t.id for t in tasks(env.source("eval"))] == ["gsm8k/train/3", "gsm8k/train/4"]
    task = env.source("eval").task(0)
    assert task.prompt == "Question: How many 3?\nAnswer: "
    assert task.reference == "1003"
    assert env.gold(task) == "It is 3.\n#### 1,003"
    env.validate(task)


def test_gsm8k_with_an_eval_file_and_chat_prompts(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", ["#### 1"])
    env = Gsm8k(train, eval=write(tmp_path / "b.jsonl", ["#### 2"] * 3), prompt="chat")
    assert (len(env.source("train")), len(env.source("eval"))) == (1, 3)
    [message] = env.source("eval").task(1).prompt
    assert isinstance(message, Message)
    assert message.role == "user"
    assert message.content.startswith("How many 1?\n")
    assert "####" in message.content


def test_gsm8k_errors_name_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["#### 1", "no number", "#### 3"])
    with pytest.raises(ValueError, match=r"row 1 of .*a\.jsonl \(line 2\).*no number after ####"):
        Gsm8k(path, eval_size=1).source("train").task(1)
    with pytest.raises(ValueError, match=r"must lie in 1\.\.2, .* has 3 rows"):
        Gsm8k(path, eval_size=3).source("train")
    with pytest.raises(ValueError, match="choose text or chat"):
        Gsm8k(path, prompt="html")  # type: ignore[arg-type]


def test_validate_names_the_task_whose_gold_answer_fails(tmp_path: Path) -> None:
    class Misread(Gsm8k):
        def gold(self, task: Task) -> str:
            return "#### 9" if task.id.endswith("/2") else super().gold(task)

    path = write(tmp_path / "a.jsonl", [f"#### {i}" for i in range(4)])
    env = Misread(path, eval_size=1)
    env.validate(env.source("train").task(1))
    with pytest.raises(ValueError, match="task gsm8k/train/2: its gold answer '#### 9' is scored"):
        env.validate(env.source("train").task(2))


def test_gsm8k_on_the_real_rows() -> None:
    env = Gsm8k(str(shared_data("gsm8k-train.jsonl")))
    for task in tasks(env.source("train")):
        env.validate(task)
    assert (len(env.source("train")), len(env.source("eval"))) == (3744, 256)
    assert env.source("train").task(0).reference == "72"
