"""Find the name that GGUF files use for the way in which a byte-level BPE tokenizer (tokenizer.json) splits text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schoolhouse.data.tokenizer import WORDS

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
DIGITS, GPT2 = "each digit alone, then as GPT-2", "as GPT-2"

SPLITS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3", "pixtral"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), DIGITS),
    **dict.fromkeys(("gpt-2", "olmo", "phi-2", "mpt", "jais", "roberta-bpe"), GPT2),
}
"""`tokenizer.ggml.pre` of a GGUF file -> a regular expression, `DIGITS` or `GPT2`."""


def split_of(tokenizer_json: Mapping[str, Any]) -> str | None:
    """Return the value of `tokenizer.ggml.pre` for a tokenizer.json, or None if the value is unknown.

    The tokenizers of this package split text in the same way as Qwen2, except for rare pieces after an apostrophe.
    """
    pre = tokenizer_json.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    if kinds == ["Split", "ByteLevel"]:
        pattern = parts[0]["pattern"].get("Regex")
        return {LLAMA3: "llama-bpe", QWEN2: "qwen2", WORDS: "qwen2"}.get(pattern)
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] and parts[0].get("use_regex", True) else None
