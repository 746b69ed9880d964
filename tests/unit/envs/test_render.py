from pathlib import Path

import pytest

from manta.envs.records import Message, Task
from manta.envs.render import Renderer
from manta.envs.tokenizer import ByteTokenizer, CharTokenizer, FileTokenizer
from tests.unit.envs.scripted import task
from tests.unit.envs.test_tokenizer import write_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BYTES = ByteTokenizer()


def chat(*messages: Message) -> Task:
    return Task(id="c", prompt=messages, reference=None, env="test")


def text_of(ids: object) -> str:
    return "".join(chr(i) if i < 256 else "$" for i in ids)  # type: ignore[attr-defined]


def test_text_prompts_are_encoded_as_they_are() -> None:
    renderer = Renderer(CharTokenizer("0123456789+="))
    ids = renderer.prompt_ids(task(prompt="12+3="))
    assert ids.tolist() == [1, 2, 10, 3, 11]
    assert ids.dtype.name == "int32"
    assert renderer.answer_ids("15").tolist() == [1, 5, 13]
    assert renderer.decode(renderer.answer_ids("15")) == "15"


def test_plain_template() -> None:
    renderer = Renderer(BYTES)
    ids = renderer.prompt_ids(
        chat(Message("user", "hi"), Message("assistant", "yes?"), Message("user", "2+2"))
    )
    assert text_of(ids) == "user: hi\nassistant: yes?$\nuser: 2+2\nassistant: "


def test_plain_reply_continues_exactly_as_a_prompt_of_all_messages_would() -> None:
    renderer = Renderer(BYTES)
    first, reply = Message("user", "hi"), Message("tool", "42")
    grown = [
        *renderer.prompt_ids(chat(first)),
        *renderer.answer_ids("look"),
        *renderer.reply_ids(reply, after=BYTES.eos_id),
    ]
    whole = renderer.prompt_ids(chat(first, Message("assistant", "look"), reply))
    assert grown == whole.tolist()


def test_given_chat_template() -> None:
    renderer = Renderer(BYTES, CHATML)
    ids = renderer.prompt_ids(chat(Message("user", "hi")))
    assert text_of(ids) == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    reply = renderer.reply_ids(Message("user", "more"))
    assert text_of(reply) == "<|end|>\n<|user|>\nmore<|end|>\n<|assistant|>\n"


def test_a_tag_stands_before_the_text_or_the_first_message(tmp_path: Path) -> None:
    opening = Message("system", "be brief")
    asked = chat(opening, Message("user", "hi"))
    assert text_of(Renderer(BYTES, tag="good ").prompt_ids(task(prompt="2+2="))) == "good 2+2="
    plain = Renderer(BYTES, tag="good ")
    assert text_of(plain.prompt_ids(asked)) == "system: good be brief\nuser: hi\nassistant: "
    templated = Renderer(BYTES, CHATML, "good ")
    assert text_of(templated.prompt_ids(asked)) == (
        "<|system|>\ngood be brief<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n"
    )
    # What is said later has none
    reply = Message("user", "more")
    assert plain.reply_ids(reply).tolist() == Renderer(BYTES).reply_ids(reply).tolist()
    with pytest.raises(ValueError, match="task c: its prompt has no message to put the tag 'good"):
        plain.prompt_ids(chat())
    # A token of the tokenizer's own, written out, is that token; the begin token stays in front
    folder = write_tokenizer(tmp_path, True, eos_token="<end>")
    special = Renderer(FileTokenizer(str(folder)), tag="<end>")
    assert special.prompt_ids(task(prompt="two plus")).tolist() == [2, 1, 3, 4]


def test_a_turn_that_opens_none() -> None:
    reply = Message("user", "more")
    assert text_of(Renderer(BYTES).reply_ids(reply, opens_turn=False)) == "\nuser: more\n"
    ids = Renderer(BYTES, CHATML).reply_ids(reply, opens_turn=False)
    assert text_of(ids) == "<|end|>\n<|user|>\nmore<|end|>\n"


def test_the_token_that_closes_a_turn_is_not_said_twice(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, eos_token="<end>")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<turn>{{ m.content }}{{ eos_token }}{% endfor %}<turn>"
    )
    renderer = Renderer(FileTokenizer(str(folder)))
    assert renderer.prompt_ids(chat(Message("user", "two"))).tolist() == [5, 3, 1, 5]
    message = Message("user", "plus")
    assert renderer.reply_ids(message, after=1).tolist() == [5, 4, 1, 5]
    assert renderer.reply_ids(message, after=3).tolist() == [1, 5, 4, 1, 5]


@pytest.mark.parametrize("template", ["T:", [{"name": "default", "template": "T:"}]])
def test_template_from_the_tokenizer_config(tmp_path: Path, template: object) -> None:
    folder = write_tokenizer(tmp_path, eos_token="<end>", chat_template=template)
    tokenizer = FileTokenizer(str(folder))
    assert tokenizer.chat_template == "T:"
    found = Renderer(tokenizer).prompt_ids(chat(Message("user", "two")))
    given = Renderer(tokenizer, "{{ messages[0].content }}").prompt_ids(
        chat(Message("user", "two"))
    )
    assert (found.tolist(), given.tolist()) == ([0, 0], [3])


def test_begin_token_opens_text_prompts(tmp_path: Path) -> None:
    renderer = Renderer(FileTokenizer(str(write_tokenizer(tmp_path, True, eos_token="<end>"))))
    assert renderer.prompt_ids(task(prompt="two plus")).tolist() == [2, 3, 4]


def test_template_errors_say_where() -> None:
    with pytest.raises(ValueError, match="chat template, line 1"):
        Renderer(BYTES, "{% for %}")
    refusing = Renderer(BYTES, "{{ raise_exception('no system turns') }}")
    with pytest.raises(ValueError, match=r"task c: .*\['system'\]: no system turns"):
        refusing.prompt_ids(chat(Message("system", "x")))


def test_template_runs_in_a_sandbox() -> None:
    renderer = Renderer(BYTES, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="unsafe"):
        renderer.prompt_ids(chat(Message("user", "x")))


def test_template_that_drops_earlier_turns_cannot_continue() -> None:
    renderer = Renderer(BYTES, "{{ messages[-1].content }}")
    with pytest.raises(ValueError, match="leaves the policy's earlier turns out"):
        renderer.reply_ids(Message("user", "x"))


def test_prompts_that_cannot_be_tokens_name_the_task() -> None:
    with pytest.raises(ValueError, match=r"task t: character 'p'"):
        Renderer(CharTokenizer("01")).prompt_ids(task())
    with pytest.raises(ValueError, match="task t: its prompt has no tokens"):
        Renderer(BYTES).prompt_ids(task(prompt=""))
