"""Tokenizers that load no torch: bytes, characters, and tokenizer files.

Owns text to ids and back. How messages become text, and what opens or closes a turn, is
`manta.envs.render`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from manta.envs.protocols import Tokenizer
from manta.envs.records import Json

if TYPE_CHECKING:
    import tokenizers

ALPHABETS = {
    "ascii": string.digits + string.ascii_letters + string.punctuation + " \n",
}
"""Alphabets that `char:NAME` knows by name; `ascii` is printable ASCII and the newline."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class ByteTokenizer:
    """UTF-8 bytes 0..255, then pad (256) and eos (257)."""

    vocab_size = 258
    pad_id = 256
    eos_id = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """Bytes that are no UTF-8 come out as U+FFFD."""
        return bytes(i for i in token_ids if i < 256).decode(errors="replace")


class CharTokenizer:
    """Each character of `alphabet` is an id in its order, then pad and eos.

    Raises ValueError for an empty alphabet or a character that stands in it twice.
    """

    def __init__(self, alphabet: str) -> None:
        repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
        if not alphabet or repeated:
            raise ValueError(
                f"tokenizer char:{alphabet}: "
                + (f"{repeated} stand in it more than once" if repeated else "it is empty")
                + "; list each character once, such as char:0123456789+="
            )
        self.alphabet = alphabet
        self.pad_id = len(alphabet)
        self.eos_id = len(alphabet) + 1
        self.vocab_size = len(alphabet) + 2
        self._ids = {character: index for index, character in enumerate(alphabet)}

    def encode(self, text: str) -> list[int]:
        """Raises ValueError naming the first character that is not in the alphabet."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"character {error.args[0]!r} of {text[:60]!r} is not in the tokenizer's alphabet "
                f"{self.alphabet!r}: add it to `model.tokenizer: char:...`, or use char:ascii or "
                "byte"
            ) from None

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.alphabet[i] for i in token_ids if i < self.pad_id)


class FileTokenizer:
    """A `tokenizer.json`, read by the `tokenizers` package.

    `path` is the file or the folder that holds it. The end token (and the pad token; without one
    the end token pads) is named in `tokenizer_config.json` or `special_tokens_map.json` beside it.
    Text is encoded without special tokens being added, but a special token that is written out in
    the text becomes its id: that is what chat templates rely on.

    `prefix_ids` are the special tokens that the file puts before a text (such as a begin token),
    `special_tokens` the texts of the special tokens by name, `chat_template` the template found
    in the folder.

    Raises ValueError where there is no such file or no end token.
    """

    def __init__(self, path: str) -> None:
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise ValueError(f"tokenizer {path}: there is no file {file}")
        self.path = str(file)
        self._tokenizer = _load(file)
        self.special_tokens = _special_tokens(file.parent)
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        eos = self.special_tokens.get("eos_token")
        if eos is None or eos not in vocabulary:
            raise ValueError(
                f"tokenizer {file}: no end token"
                + ("" if eos is None else f" ({eos!r} is not in the vocabulary)")
                + '; name it beside the file, in tokenizer_config.json: {"eos_token": "..."}'
            )
        self.eos_id = vocabulary[eos]
        self.pad_id = vocabulary.get(self.special_tokens.get("pad_token", eos), self.eos_id)
        sample = self._tokenizer.encode("0", add_special_tokens=True)
        opening = sample.special_tokens_mask.index(0) if 0 in sample.special_tokens_mask else 0
        self.prefix_ids: tuple[int, ...] = tuple(sample.ids[:opening])
        self.chat_template = _chat_template(file.parent)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        ids = [int(i) for i in token_ids]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def build_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that `spec` names.

    `byte`; `char:ALPHABET`, where the alphabet is its characters or `ascii`; the path of a
    `tokenizer.json` or its folder; else the name of a model on the Hugging Face hub, whose
    tokenizer files are fetched. Raises ValueError where nothing is found.
    """
    if spec == "byte":
        return ByteTokenizer()
    if spec.startswith("char:"):
        alphabet = spec.removeprefix("char:")
        return CharTokenizer(ALPHABETS.get(alphabet, alphabet))
    if Path(spec).exists():
        return FileTokenizer(spec)
    return FileTokenizer(_fetch(spec))


def _fetch(name: str) -> str:
    """The local folder of a hub model's tokenizer files."""
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, allow_patterns=list(TOKENIZER_FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer {name!r}: it is neither `byte`, `char:ALPHABET` nor a path that exists, "
            f"and the hub gave no model of that name: {error}"
        ) from error


def _load(file: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as FastTokenizer

    text = file.read_text(encoding="utf-8")
    _json(file, text)
    return FastTokenizer.from_str(text)


def _json(file: Path, text: str) -> Mapping[str, Json]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds no JSON object")
    return value


def _read(file: Path) -> Mapping[str, Json]:
    return _json(file, file.read_text(encoding="utf-8")) if file.is_file() else {}


def _special_tokens(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        values = _read(folder / file)
        for name in SPECIAL_TOKENS:
            value = values.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found


def _chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = _read(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        named = {str(v.get("name")): v.get("template") for v in value if isinstance(v, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
