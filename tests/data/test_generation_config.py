from __future__ import annotations

import json
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.generation_config import eos_token_ids, read_generation_config
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.types import SchoolError


def write(folder: Path, name: str, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A model folder with a tokenizer and no generation settings."""
    tokenizer.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("value", "ids"), [(3, (3,)), ([3, 5], (3, 5)), (None, ()), ([], ()), (True, ()), ("3", ())])
def test_eos_may_be_one_id_or_a_list(value: object, ids: tuple[int, ...]) -> None:
    assert eos_token_ids({"eos_token_id": value}) == ids


def test_every_eos_id_of_both_configs_stops_a_reply(tokenizer: Tokenizer, folder: Path) -> None:
    start, think, pad = (tokenizer.special_tokens[text] for text in ("<|im_start|>", "<think>", "<|pad|>"))
    write(folder, "generation_config.json", eos_token_id=[start, think])
    write(folder, "config.json", eos_token_id=start, text_config={"eos_token_id": pad})
    end = tokenizer.special_tokens["<|im_end|>"]
    assert Conversation.load(folder).stop_ids == (end, tokenizer.eos_id, start, think, pad)


def test_an_eos_id_without_a_token_is_left_out(tokenizer: Tokenizer, folder: Path) -> None:
    write(folder, "generation_config.json", eos_token_id=[9_999])
    assert 9_999 not in Conversation.load(folder).stop_ids


def test_the_other_settings_are_kept_on_saving(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    think = tokenizer.special_tokens["<think>"]
    write(folder, "generation_config.json", eos_token_id=[think], bos_token_id=7, temperature=0.6, top_p=0.95)
    Conversation.load(folder).save(tmp_path / "saved")
    saved = read_generation_config(tmp_path / "saved")
    assert think in saved["eos_token_id"]
    assert (saved["bos_token_id"], saved["temperature"], saved["top_p"]) == (7, 0.6, 0.95)
    assert Conversation.load(tmp_path / "saved").stop_ids == Conversation.load(folder).stop_ids


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": ')
    with pytest.raises(SchoolError, match=r"generation_config\.json is damaged"):
        Conversation.load(folder)
