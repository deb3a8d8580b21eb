"""Text to token ids and back: byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; over bytes as in GPT-2).

Encoding and then decoding gives the same text again. Each digit is one token, so a number of n digits always has n
tokens. Ordinary text never produces the ids of special tokens (`<|im_end|>`, `<think>`, ...); only `parse_special=True`
produces them. Folders are read and written in Hugging Face format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.types import SchoolError

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK, PAD = "<think>", "</think>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, THINK, END_THINK, PAD)

# A word with the space or sign before it; one digit; several signs; line ends; spaces, except the last before a word.
WORDS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_LOOKS_SPECIAL = re.compile(r"\s*[<\[].*[>\]]\s*", re.DOTALL)


class Tokenizer:
    """Text to ids and back. `config` is the content of tokenizer_config.json, and `save` writes it back unchanged.

    vocab_size      ids are from 0 to vocab_size - 1
    eos_id          id that ends a document
    pad_id          id that fills a batch; the model never reads it
    special_tokens  {text: id} of every token that ordinary text must not produce
    added_tokens    {id: token} of the same tokens
    """

    def __init__(self, inner: Inner, config: dict[str, Any], chat_template: str | None = None) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.config = config
        self.chat_template = chat_template
        self.vocab: dict[str, int] = inner.get_vocab()
        self.vocab_size = max(self.vocab.values()) + 1
        added_tokens = inner.get_added_tokens_decoder()
        self.added_tokens: dict[int, AddedToken] = {
            i: token for i, token in added_tokens.items() if token.special or _LOOKS_SPECIAL.fullmatch(token.content)
        }
        self.special_tokens: dict[str, int] = {token.content: i for i, token in self.added_tokens.items()}
        self._plain = _without(inner, set(self.added_tokens))
        self.eos_id = self._special_id("eos_token", "the token that ends a document")
        self.pad_id = self._special_id("pad_token", "padding") if self.special_token("pad_token") else self.eos_id

    def special_token(self, name: str) -> str | None:
        """The text of `eos_token`, `bos_token`, ... in the config, if the value is a string or {"content": ...}."""
        token = self.config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    def _special_id(self, name: str, purpose: str) -> int:
        text = self.special_token(name)
        token_id = None if text is None else self._inner.token_to_id(text)
        if token_id is None:
            raise SchoolError(
                f"tokenizer_config.json: `{name}` ({purpose}) is {text!r}, which is no token of tokenizer.json; "
                "use a token of tokenizer.json"
            )
        return token_id

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of a text. If the text contains `<|im_end|>`, this is ordinary text, except with `parse_special`."""
        return self.encode_batch([text], parse_special)[0]

    def encode_batch(self, texts: Sequence[str], parse_special: bool = False) -> list[list[int]]:
        """`encode` for many texts, in parallel. Raises SchoolError for a lone surrogate (half a character)."""
        encoder = self._inner if parse_special else self._plain
        try:
            return [e.ids for e in encoder.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            bad = next((text for text in texts if any("\ud800" <= c <= "\udfff" for c in text)), None)
            if bad is None:
                raise
            raise SchoolError(
                f"a lone surrogate (half a character) cannot be encoded; remove it from {bad[:80]!r}"
            ) from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids. Bytes that are not UTF-8 (half a character) become U+FFFD."""
        return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str:
        """One token as it is in the vocabulary (byte-level alphabet: `Ġ` is a space)."""
        return self._inner.id_to_token(token_id) or ""

    def save(self, folder: Path | str, chat_template: str | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as AutoTokenizer reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        template = chat_template or self.chat_template
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        if template:
            config["chat_template"] = template
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        (folder / "tokenizer.json").write_text(self._inner.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """A tokenizer from a model folder, or from the newest checkpoint of a run.

        Raises SchoolError if a file is missing or damaged; the message names the file.
        """
        folder = resolve_model(folder)
        path = folder / "tokenizer.json"
        text = _read(path, "save the tokenizer again with transformers' AutoTokenizer(...).save_pretrained")
        try:
            inner = Inner.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise SchoolError(f"{path} is damaged or truncated ({error}); copy it again") from error
        path = folder / "tokenizer_config.json"
        text = _read(path, "it must name at least the eos_token")
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise SchoolError(
                f"{path}, line {error.lineno} is damaged or truncated ({error.msg}); copy it again"
            ) from error
        if not isinstance(config, dict):
            raise SchoolError(f"{path} should hold a JSON object, not {type(config).__name__}; copy it again")
        template = folder / "chat_template.jinja"
        if template.is_file():
            return cls(inner, config, _read(template, "it holds the chat template"))
        return cls(inner, config, _default_template(config.get("chat_template")))


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens: special tokens, all 256 bytes, and the most frequent pairs.

    If the texts do not have enough pairs, there are fewer tokens. The same texts give the same tokenizer.
    """
    minimum = 256 + len(SPECIAL_TOKENS)
    if vocab_size < minimum:
        raise SchoolError(f"a vocab_size of {vocab_size} is too small: bytes and special tokens alone take {minimum}")
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    return Tokenizer(inner, config)


def _without(inner: Inner, tokens: set[int]) -> Inner:
    """A copy for which these added tokens are ordinary text."""
    content = json.loads(inner.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] not in tokens]
    try:
        return Inner.from_str(json.dumps(content))
    except Exception as error:  # the library raises plain Exception
        raise SchoolError(f"tokenizer.json is damaged ({error}); copy it again") from error


def _read(path: Path, advice: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SchoolError(f"{path} is missing; {advice}") from None
    except UnicodeDecodeError as error:
        raise SchoolError(f"{path} is damaged: {error}; copy it again") from error


def _default_template(template: object) -> str | None:
    """The chat template of a tokenizer_config.json: a string, or a list of named ones."""
    if isinstance(template, list):
        return next((t["template"] for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None
