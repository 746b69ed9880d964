import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from manta.envs.tokenizer import ByteTokenizer, CharTokenizer, FileTokenizer, build_tokenizer


@given(st.text())
def test_bytes_give_any_text_back(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == text


def test_bytes_that_are_no_text_decode() -> None:
    assert ByteTokenizer().decode([0xC3, 65]) == "\ufffdA"


def test_characters_are_ids_in_alphabet_order() -> None:
    tokenizer = CharTokenizer("0123+=")
    assert tokenizer.encode("3+1=") == [3, 4, 1, 5]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (6, 7, 8)
    assert tokenizer.decode([3, 4, 1, 5, 7, 6]) == "3+1="


def test_unknown_character_is_named_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"'x'.*add it to `model.tokenizer: char:"):
        CharTokenizer("01").encode("0x1")


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_alphabets_that_are_none(alphabet: str) -> None:
    with pytest.raises(ValueError, match="list each character once"):
        CharTokenizer(alphabet)


def write_tokenizer(folder: Path, begin: bool = False, **config: object) -> Path:
    words = {"<unk>": 0, "<end>": 1, "<begin>": 2, "two": 3, "plus": 4, "<turn>": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>", "<begin>", "<turn>"])
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<begin> $A", special_tokens=[("<begin>", 2)]
        )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_file_tokenizer_reads_folder_and_file(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tok", eos_token={"content": "<end>"})
    for path in (folder, folder / "tokenizer.json"):
        tokenizer = build_tokenizer(str(path))
        assert tokenizer.encode("two plus two<end>") == [3, 4, 3, 1]
        assert tokenizer.decode([3, 4, 3, 1]) == "two plus two"
        assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 1, 6)


def test_special_tokens_map_serves_too_and_pad_is_its_own(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "tok")
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<end>", "pad_token": "<turn>"})
    )
    tokenizer = FileTokenizer(str(folder))
    assert (tokenizer.eos_id, tokenizer.pad_id) == (1, 5)


def test_begin_token_is_a_prefix_and_not_in_encode(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(str(write_tokenizer(tmp_path, begin=True, eos_token="<end>")))
    assert tokenizer.prefix_ids == (2,)
    assert tokenizer.encode("two") == [3]


def test_no_end_token_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no end token; name it.*tokenizer_config.json"):
        FileTokenizer(str(write_tokenizer(tmp_path / "a")))
    with pytest.raises(ValueError, match="'<stop>' is not in the vocabulary"):
        FileTokenizer(str(write_tokenizer(tmp_path / "b", eos_token="<stop>")))


def test_folder_without_tokenizer_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        build_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        build_tokenizer(str(tmp_path))


def test_specs() -> None:
    assert isinstance(build_tokenizer("byte"), ByteTokenizer)
    ascii_tokenizer = build_tokenizer("char:ascii")
    text = "".join(chr(i) for i in range(32, 127)) + "\n"
    assert ascii_tokenizer.decode(ascii_tokenizer.encode(text)) == text
    assert ascii_tokenizer.vocab_size == len(text) + 2
    assert build_tokenizer("char:01+").encode("+0") == [2, 0]


def test_spec_that_is_nothing_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither `byte`, `char:ALPHABET` nor a path"):
        build_tokenizer(str(tmp_path / "missing" / "tokenizer.json"))
