"""Show the tokens of a text in colours, for the command `school tokens "text"`."""

from __future__ import annotations

from rich.text import Text

from schoolhouse.data.tokenizer import Tokenizer

_COLOURS = ("black on #a6d8ff", "black on #ffd59e")
_SPECIAL = "bold white on #7a3e9d"
_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def show_tokens(text: str, tokenizer: Tokenizer, parse_special: bool = False) -> Text:
    """Show the tokens of a text in alternating colours, then the token ids in the same colours, then the counts.

    Spaces and line ends are shown as printed signs. Incomplete characters and characters that cannot be printed are
    shown as escape sequences.
    With `parse_special`, texts such as `<think>` are encoded as special tokens and shown in another colour.
    """
    ids = tokenizer.encode(text, parse_special)
    styles = [
        _SPECIAL if parse_special and token in tokenizer.added_tokens else _COLOURS[i % len(_COLOURS)]
        for i, token in enumerate(ids)
    ]
    shown = Text()
    for token, style in zip(ids, styles, strict=True):
        data = token_bytes(token, tokenizer)
        shown.append(printable(data), style)
        if data.endswith(b"\n"):
            shown.append("\n")
    shown.append("\n\n")
    for token, style in zip(ids, styles, strict=True):
        shown.append(str(token), style)
        shown.append(" ")
    size = len(text.encode())
    shown.append(f"\n\n{len(ids)} tokens, {len(text)} characters, {size} bytes")
    if ids:
        shown.append(f", {size / len(ids):.2f} bytes a token")
    return shown


def printable(data: bytes) -> str:
    """Convert bytes to a text in which every character can be printed."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(_SIGNS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def token_bytes(token: int, tokenizer: Tokenizer) -> bytes:
    """Return the bytes of one token. If the tokenizer is not byte-level, return the bytes of the token's text."""
    text = tokenizer.id_to_token(token)
    if token not in tokenizer.added_tokens and all(c in _BYTES for c in text):
        return bytes(_BYTES[c] for c in text)
    return tokenizer.decode([token]).encode()


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that byte-level BPE uses for bytes (GPT-2).

    A printable Latin-1 character stands for its own byte. All other bytes are written as characters that start at
    U+0100.
    """
    visible_bytes = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible_bytes]
    return {chr(b): b for b in visible_bytes} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTES = _byte_alphabet()
