"""Reads the tokenizer of a model folder: tokenizer.json, its config, and its chat templates.

A folder can hold chat templates in chat_template.jinja, in tokenizer_config.json (a text, or a list of named texts), in
chat_template.json, or in additional_chat_templates/NAME.jinja. The eos token is named in tokenizer_config.json,
special_tokens_map.json, generation_config.json or config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken
from tokenizers import Tokenizer as Inner

from schoolhouse.data.generation_config import eos_token_ids, read_generation_config
from schoolhouse.types import SchoolError

_MAIN_NAME = "default"
_SLOW_FILES = ("tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


class TokenizerFiles(NamedTuple):
    """The parts of a `Tokenizer` that are read from the files of a folder."""

    inner: Inner
    config: dict[str, Any]
    chat_template: str | None
    chat_templates: dict[str, str]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the tokenizer of a model folder. Raises SchoolError if a file is missing or damaged, and names the file."""
    path = folder / "tokenizer.json"
    if not path.is_file() and any((folder / name).is_file() for name in _SLOW_FILES):
        inner = _convert(folder)
    else:
        text = _read(path, "save the tokenizer again with transformers' AutoTokenizer(...).save_pretrained")
        try:
            inner = Inner.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise SchoolError(f"{path} is damaged or truncated ({error}); copy it again") from error
    path = folder / "tokenizer_config.json"
    config = _read_object(path, "the file must name at least the eos_token")
    _add_tokens(inner, config)
    config = _with_special_tokens(folder, config, inner)
    templates = _read_templates(folder, config)
    return TokenizerFiles(inner, config, templates.pop(_MAIN_NAME, None), templates)


def _convert(folder: Path) -> Inner:
    """Convert a tokenizer that has only files of older formats, but no tokenizer.json. transformers does the
    conversion."""
    try:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return Inner.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # the code of each tokenizer may raise anything
        raise SchoolError(
            f"{folder / 'tokenizer.json'} is missing, and transformers cannot convert the other files ({error}); "
            "copy tokenizer.json from a newer copy of the model"
        ) from error


def _with_special_tokens(folder: Path, config: dict[str, Any], inner: Inner) -> dict[str, Any]:
    """Add the special tokens of special_tokens_map.json, and an eos token from the model's config, to the config."""
    path = folder / "special_tokens_map.json"
    if path.is_file():
        named = {key: value for key, value in _read_object(path).items() if key.endswith("_token")}
        config = {**config, **{key: value for key, value in named.items() if value and not config.get(key)}}
    if not config.get("eos_token"):
        ids = eos_token_ids(read_generation_config(folder))
        token = next((text for text in map(inner.id_to_token, ids) if text is not None), None)
        config = {**config, "eos_token": token} if token is not None else config
    return config


def _add_tokens(inner: Inner, config: dict[str, Any]) -> None:
    """Add the tokens that are in `added_tokens_decoder` of the config but not in tokenizer.json."""
    named = config.get("added_tokens_decoder")
    if not isinstance(named, dict):
        return
    for token_id, token in sorted((int(key), value) for key, value in named.items() if str(key).isdigit()):
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or inner.token_to_id(content) is not None:
            continue
        if token_id == max(inner.get_vocab().values(), default=-1) + 1:  # the library numbers new tokens itself
            flags = {flag: bool(token.get(flag)) for flag in ("lstrip", "rstrip", "single_word", "normalized")}
            inner.add_tokens([AddedToken(content, special=bool(token.get("special")), **flags)])


def _read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Read the chat templates as {name: text}. The name of the main template is `default`. A .jinja file replaces the
    template of the same name in the config."""
    templates: dict[str, str] = {}
    path = folder / "chat_template.json"
    sources = [_read_object(path).get("chat_template")] if path.is_file() else []
    for template in (*sources, config.get("chat_template")):
        if isinstance(template, str):
            templates[_MAIN_NAME] = template
        elif isinstance(template, dict):
            templates |= {name: text for name, text in template.items() if isinstance(text, str)}
        elif isinstance(template, list):
            named = [entry for entry in template if isinstance(entry, dict) and isinstance(entry.get("template"), str)]
            templates |= {str(entry.get("name", _MAIN_NAME)): entry["template"] for entry in named}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read(path, "the file must hold a chat template")
    path = folder / "chat_template.jinja"
    if path.is_file():
        templates[_MAIN_NAME] = _read(path, "the file must hold the chat template")
    if len(templates) == 1:  # one template is the main one, whatever its name is
        templates = {_MAIN_NAME: next(iter(templates.values()))}
    return templates


def without_tokens(inner: Inner, tokens: set[int]) -> Inner:
    """Return a copy of a tokenizer that reads these added tokens as ordinary text."""
    content = json.loads(inner.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] not in tokens]
    return _from_content(content)


def without_leading_blank(inner: Inner) -> Inner:
    """Return a copy of a tokenizer that puts no blank before a text, or the tokenizer itself if it never puts a blank.

    SentencePiece tokenizers (Llama 2, Mistral, Gemma 1) put a blank before each text. With this blank, the first word
    of a text has the same token as in the middle of a sentence.
    """
    content = json.loads(inner.to_str())
    changed = _drop_blank(content, "normalizer"), _drop_blank(content, "pre_tokenizer")
    return _from_content(content) if any(changed) else inner


def _drop_blank(holder: dict[str, Any], key: str) -> bool:
    """Change the part `key` of a tokenizer, so that it puts no blank before a text. Returns True if the part was
    changed."""
    part = holder.get(key)
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        holders = [{"part": inner} for inner in part[name]]
        changed = [_drop_blank(inner, "part") for inner in holders]
        part[name] = [inner["part"] for inner in holders if inner["part"] is not None]
        return any(changed)
    if kind == "Prepend":
        holder[key] = None
        return True
    if kind == "Metaspace" and part.get("prepend_scheme", "always") != "never":
        part["prepend_scheme"] = "never"
        part.pop("add_prefix_space", None)
        return True
    if kind == "ByteLevel" and key != "decoder" and part.get("add_prefix_space"):
        part["add_prefix_space"] = False
        return True
    return False


def _from_content(content: dict[str, Any]) -> Inner:
    try:
        return Inner.from_str(json.dumps(content))
    except Exception as error:  # the library raises plain Exception
        raise SchoolError(f"tokenizer.json is damaged ({error}); copy it again") from error


def _read_object(path: Path, advice: str = "copy it again") -> dict[str, Any]:
    text = _read(path, advice)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise SchoolError(
            f"{path}, line {error.lineno} is damaged or truncated ({error.msg}); copy it again"
        ) from error
    if not isinstance(content, dict):
        raise SchoolError(f"{path} holds a {type(content).__name__} instead of a JSON object; copy the file again")
    return content


def _read(path: Path, advice: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SchoolError(f"{path} is missing; {advice}") from None
    except UnicodeDecodeError as error:
        raise SchoolError(f"{path} is damaged: {error}; copy it again") from error
