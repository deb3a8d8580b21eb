"""The tokenizer: a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909), which works on bytes as in GPT-2.

Encoding a text and decoding the ids gives the same text again. Each digit is one token, so a number with n digits
always has n tokens. Ordinary text never produces the ids of special tokens such as `<|im_end|>` or `<think>`. Only
`parse_special=True` produces special tokens. Folders are read and written in Hugging Face format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from schoolhouse.data.tokenizer_files import read_tokenizer_files, without_leading_blank, without_tokens
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.runs.progress import phased
from schoolhouse.types import SchoolError

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, END_THINK, PAD = "<think>", "</think>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, THINK, END_THINK, PAD)

# A word with the space or sign before it; one digit; several signs; line ends; spaces, except the last before a word.
WORDS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_LOOKS_SPECIAL = re.compile(r"\s*[<\[].*[>\]]\s*", re.DOTALL)


class Tokenizer:
    """A tokenizer, which converts text to token ids and back.

    The argument `config` is the content of tokenizer_config.json; `save` writes this content unchanged.

    `vocab_size` is the number of ids. The ids are from 0 to vocab_size - 1.
    `bos_ids` are the ids that the tokenizer puts before a text, according to tokenizer.json. Most tokenizers have no
    `bos_ids`.
    `eos_id` is the id that ends a document.
    `pad_id` is the id that fills a batch. The model never reads this id.
    `special_tokens` is a dict {text: id} of all tokens that ordinary text must not produce.
    `added_tokens` is a dict {id: token} of the same tokens.
    `chat_template` is the main chat template of the model, or None.
    `chat_templates` are the other chat templates of the model, by name (`tool_use`, `rag`).
    """

    def __init__(
        self,
        inner: Inner,
        config: dict[str, Any],
        chat_template: str | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.config = config
        self.chat_template = chat_template
        self.chat_templates = dict(chat_templates or {})
        self.vocab: dict[str, int] = inner.get_vocab()
        self.vocab_size = max(self.vocab.values()) + 1
        added_tokens = inner.get_added_tokens_decoder()
        self.added_tokens: dict[int, AddedToken] = {
            i: token for i, token in added_tokens.items() if token.special or _LOOKS_SPECIAL.fullmatch(token.content)
        }
        self.special_tokens: dict[str, int] = {token.content: i for i, token in self.added_tokens.items()}
        self._plain = without_tokens(inner, set(self.added_tokens))
        self._continuing = {True: without_leading_blank(inner), False: without_leading_blank(self._plain)}
        self.eos_id = self._special_id("eos_token", "the token that ends a document")
        pad_token = self.special_token("pad_token")
        pad_id = inner.token_to_id(pad_token) if pad_token else None  # some folders name a token that is not there
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self.bos_ids = self._find_bos_ids()

    def special_token(self, name: str) -> str | None:
        """Return the text of a token, such as `eos_token`, from tokenizer_config.json.

        The value of the key must be a string or {"content": ...}; otherwise None is returned.
        """
        token = self.config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    def _special_id(self, name: str, purpose: str) -> int:
        text = self.special_token(name)
        token_id = None if text is None else self._inner.token_to_id(text)
        if token_id is None:
            raise SchoolError(
                f"tokenizer_config.json: `{name}` ({purpose}) is {text!r}, which is not a token of tokenizer.json; "
                "use a token of tokenizer.json"
            )
        return token_id

    def _find_bos_ids(self) -> tuple[int, ...]:
        """Return the ids that the post-processor of tokenizer.json puts before a text."""
        plain, whole = (self._inner.encode("a", add_special_tokens=special).ids for special in (False, True))
        starts = (n for n in range(len(whole) + 1) if whole[n : n + len(plain)] == plain)
        return tuple(whole[: next(starts, 0)])

    @cached_property
    def puts_blank(self) -> bool:
        """Return True if the tokenizer puts a blank before a text, as SentencePiece does."""
        return self._continuing[True] is not self._inner

    @cached_property
    def puts_blank_after_special(self) -> bool:
        """Return True if the tokenizer also puts a blank before a text that follows a special token."""
        if not (self.puts_blank and self.special_tokens):
            return False
        token, token_id = next(iter(self.special_tokens.items()))
        return self.encode(f"{token}a", parse_special=True) == [token_id, *self.encode("a")]

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each id, decoded alone, from id 0 to `vocab_size - 1`."""
        return [self.decode([token]) for token in range(self.vocab_size)]

    def added_token_text(self, token_id: int) -> str:
        """Return the text of any token. Special tokens are included."""
        return self.added_tokens[token_id].content if token_id in self.added_tokens else self.id_to_token(token_id)

    def with_tokens(self, texts: Sequence[str]) -> Tokenizer:
        """Return a tokenizer with these tokens added. Ordinary text does not produce the added tokens."""
        inner = Inner.from_str(self._inner.to_str())
        inner.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
        return Tokenizer(inner, self.config, self.chat_template, self.chat_templates)

    def missing_ids(self, size: int) -> list[int]:
        """Return the ids below `size` that have no token. A model can have more logits than the tokenizer has
        tokens."""
        return sorted(set(range(size)) - set(self.vocab.values()))

    def encode(self, text: str, parse_special: bool = False, continues: bool = False) -> list[int]:
        """Encode a text as token ids. Only `parse_special` turns a text such as `<|im_end|>` into a special token.

        With `continues`, the text continues another text. In this case, a SentencePiece tokenizer puts no blank before
        the text.
        """
        return self.encode_batch([text], parse_special, continues)[0]

    def encode_batch(
        self, texts: Sequence[str], parse_special: bool = False, continues: bool = False
    ) -> list[list[int]]:
        """Encode many texts in parallel. Raises SchoolError if a text contains a lone surrogate (half a character)."""
        encoder = self._inner if parse_special else self._plain
        encoder = self._continuing[parse_special] if continues else encoder
        try:
            return [e.ids for e in encoder.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            bad = next((text for text in texts if any("\ud800" <= c <= "\udfff" for c in text)), None)
            if bad is None:
                raise
            raise SchoolError(
                f"a text contains a lone surrogate (half a character); remove it from the text {bad[:80]!r}"
            ) from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Decode ids to a text. Bytes that are not valid UTF-8, such as half a character, become U+FFFD."""
        return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def decode_sections(self, ids: Sequence[int]) -> str:
        """Decode ids without the blanks that the tokenizer puts after special tokens when it encodes a text."""
        if not self.puts_blank_after_special:
            return self.decode(ids)
        sections: list[list[int]] = [[]]
        for token in ids:
            sections += [[token], []] if token in self.added_tokens else []
            if token not in self.added_tokens:
                sections[-1].append(token)
        return "".join(map(self.decode, sections))

    def id_to_token(self, token_id: int) -> str:
        """Return a token as it is written in the vocabulary. In the byte-level alphabet, `Ġ` is a space."""
        return self._inner.id_to_token(token_id) or ""

    def save(self, folder: Path | str, chat_template: str | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat templates, so that AutoTokenizer can read them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        template = chat_template or self.chat_template
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        if template:
            config["chat_template"] = template
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        for name, text in self.chat_templates.items():
            path = folder / "additional_chat_templates" / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (folder / "tokenizer.json").write_text(self._inner.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Load the tokenizer of a model folder, or of the newest checkpoint of a run.

        Raises SchoolError if a file is missing or damaged; the message names the file.
        """
        return cls(*read_tokenizer_files(resolve_model(folder)))


@phased("training the tokenizer")
def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with `vocab_size` tokens: special tokens, all 256 bytes, and the most frequent pairs.

    If the texts do not contain enough pairs, the vocabulary is smaller. Training twice on the same texts gives the same
    tokenizer.
    """
    minimum = 256 + len(SPECIAL_TOKENS)
    if vocab_size < minimum:
        raise SchoolError(f"a vocab_size of {vocab_size} is too small; set `vocab_size` to at least {minimum}")
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
