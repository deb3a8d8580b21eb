from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from schoolhouse.types import SchoolError

TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(SPECIAL_TOKENS)), max_size=8).map("".join)


@given(text=TEXT)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=TEXT)
def test_text_never_becomes_special_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_tokens.values())


@given(texts=st.lists(TEXT, max_size=4), parse_special=st.booleans())
def test_a_batch_equals_one_by_one(tokenizer: Tokenizer, texts: list[str], parse_special: bool) -> None:
    assert tokenizer.encode_batch(texts, parse_special) == [tokenizer.encode(text, parse_special) for text in texts]


def test_special_tokens_are_parsed_on_request(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<think>3</think><|im_end|>", parse_special=True)
    assert [ids[0], ids[-2], ids[-1]] == [tokenizer.special_tokens[t] for t in ("<think>", "</think>", "<|im_end|>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "3"


def test_each_digit_is_a_token() -> None:
    learned = train_tokenizer(["the year 2024 and 2024.2024 "] * 50, 300)
    assert [learned.decode([i]) for i in learned.encode("2024.2024")] == list("2024.2024")


def test_frequent_words_become_one_token() -> None:
    learned = train_tokenizer(["apples and apples\n"] * 50, 300)
    assert len(learned.encode(" apples")) == 1


def test_all_bytes_are_there() -> None:
    learned = train_tokenizer(["a"], 262)
    assert learned.vocab_size == 262
    assert learned.decode(learned.encode("\x00é\U0001f989\r\n")) == "\x00é\U0001f989\r\n"


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(SchoolError, match="vocab_size of 261 is too small.*262"):
        train_tokenizer(["a"], 261)


def test_half_a_character_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SchoolError, match=r"lone surrogate.*bad \\ud83d"):
        tokenizer.encode("bad \ud83d")


def test_the_same_texts_give_the_same_tokenizer_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from schoolhouse.data.tokenizer import train_tokenizer; "
        "train_tokenizer(['ab cd abc bcd dab cad bad'[i % 9:] for i in range(99)], 290).save(sys.argv[1])"
    )
    files = []
    for name in ("a", "b"):
        environment = {**os.environ, "PYTHONHASHSEED": str(len(files)), "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True, env=environment)
        files.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


def test_a_saved_tokenizer_loads_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = "Emily buys 3 apples <think> \U0001f989"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode(text, parse_special=True) == tokenizer.encode(text, parse_special=True)
    assert (loaded.vocab_size, loaded.eos_id, loaded.pad_id) == (
        tokenizer.vocab_size,
        tokenizer.eos_id,
        tokenizer.pad_id,
    )


def test_transformers_reads_a_saved_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Emily buys 3 apples, 12.5 %", " <|im_start|>user\nhi<think>é\U0001f989</think>  \n\n x", ""):
        assert hf_tokenizer.encode(text) == tokenizer.encode(text, parse_special=True)
        assert hf_tokenizer.decode(hf_tokenizer.encode(text)) == text
    assert (hf_tokenizer.eos_token_id, hf_tokenizer.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)


def test_a_tokenizer_saved_by_transformers_loads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "saved")
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved", eos_token="<|im_end|>")
    hf_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    hf_tokenizer.save_pretrained(tmp_path / "resaved")
    loaded = Tokenizer.load(tmp_path / "resaved")
    assert loaded.eos_id == tokenizer.special_tokens["<|im_end|>"]
    assert loaded.chat_template == hf_tokenizer.chat_template
    assert loaded.encode("9.11 and <think> 9.9", parse_special=True) == hf_tokenizer.encode("9.11 and <think> 9.9")


def rewrite(folder: Path, **config: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_eos_may_be_written_as_an_object(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    rewrite(tmp_path, eos_token={"content": "<|im_end|>", "lstrip": False})
    assert Tokenizer.load(tmp_path).eos_id == tokenizer.special_tokens["<|im_end|>"]


@pytest.mark.parametrize(
    "template", ["{{ x }}", [{"name": "tool", "template": "-"}, {"name": "default", "template": "{{ x }}"}]]
)
def test_the_template_may_stand_in_the_config(tokenizer: Tokenizer, tmp_path: Path, template: object) -> None:
    tokenizer.save(tmp_path)
    rewrite(tmp_path, chat_template=template)
    assert Tokenizer.load(tmp_path).chat_template == "{{ x }}"


@pytest.mark.parametrize("eos", [None, "<nowhere>"])
def test_an_eos_that_is_no_token_is_refused(tokenizer: Tokenizer, tmp_path: Path, eos: str | None) -> None:
    tokenizer.save(tmp_path)
    rewrite(tmp_path, eos_token=eos)
    with pytest.raises(SchoolError, match="eos_token"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_or_truncated_file_is_named(tokenizer: Tokenizer, tmp_path: Path, name: str) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(SchoolError, match=f"{name}.*truncated"):
        Tokenizer.load(tmp_path)
    path.unlink()
    with pytest.raises(SchoolError, match=f"{name} is missing"):
        Tokenizer.load(tmp_path)
