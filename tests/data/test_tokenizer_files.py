from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import processors

from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_template import BUILT_IN_TEMPLATES
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.types import SchoolError
from template_zoo import KINDS, base_tokenizer, write_model

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
)
OTHER = TEMPLATE.replace(": ", " says ")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tokenizer with the special tokens `<s>` and `</s>`, and no chat template."""
    write_model(tmp_path, TEMPLATE, request.param)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "generation_config.json").unlink()
    return tmp_path


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value is not None}))


# --- chat templates


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/default.jinja"])
def test_a_template_may_lie_in_a_file(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(TEMPLATE)
    assert Conversation.load(folder).template == TEMPLATE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template.json", TEMPLATE),
        ("tokenizer_config.json", TEMPLATE),
        ("tokenizer_config.json", [{"name": "rag", "template": OTHER}, {"name": "default", "template": TEMPLATE}]),
        ("tokenizer_config.json", [{"name": "only", "template": TEMPLATE}]),
        ("tokenizer_config.json", {"default": TEMPLATE, "rag": OTHER}),
    ],
)
def test_a_template_may_lie_in_a_config(folder: Path, name: str, value: object) -> None:
    edit(folder / name, chat_template=value)
    assert Conversation.load(folder).template == TEMPLATE


def test_a_file_of_its_own_comes_before_the_config(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=OTHER)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert Conversation.load(folder).template == TEMPLATE


def test_several_templates_without_a_main_one_are_listed(folder: Path) -> None:
    named = [{"name": "rag", "template": OTHER}, {"name": "tool_use", "template": TEMPLATE}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    with pytest.raises(SchoolError, match=r"several chat templates \(rag, tool_use\).*--template.name rag"):
        Conversation.load(folder)


def test_other_templates_are_saved_too(folder: Path, tmp_path: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template={"default": TEMPLATE, "rag": OTHER})
    Conversation.load(folder).save(tmp_path / "saved")
    saved = Tokenizer.load(tmp_path / "saved")
    assert (saved.chat_template, saved.chat_templates) == (TEMPLATE, {"rag": OTHER})


# --- eos and other tokens


@pytest.mark.parametrize("name", ["special_tokens_map.json", "generation_config.json", "config.json"])
def test_the_eos_token_is_found_in_other_files(folder: Path, name: str) -> None:
    expected = Tokenizer.load(folder).eos_id
    edit(folder / "tokenizer_config.json", eos_token=None)
    value = {"eos_token": {"content": "</s>"}} if name == "special_tokens_map.json" else {"eos_token_id": [expected]}
    edit(folder / name, **value)
    assert Tokenizer.load(folder).eos_id == expected


def test_a_pad_token_that_is_no_token_is_not_used(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token="[PAD]")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.pad_id == tokenizer.eos_id


def test_tokens_of_the_config_are_added(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = Tokenizer.load(folder).vocab_size
    token = {"content": "<think>", "special": False, "normalized": False, "lstrip": False, "rstrip": False}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={str(size): {**token, "single_word": False}})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.special_tokens["<think>"] == size
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert hf_tokenizer.convert_tokens_to_ids("<think>") == size


def test_the_files_of_an_older_tokenizer_are_converted(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    content = json.loads(base_tokenizer("bytes"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps({**content["vocab"], "<|endoftext|>": len(content["vocab"])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in content["merges"]))
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("two plus three")) == "two plus three"
    assert tokenizer.eos_id == len(content["vocab"])


# --- bos and blanks


def test_the_bos_token_comes_where_the_rules_of_the_tokenizer_put_it(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert Tokenizer.load(folder).bos_ids == ()
    inner = Inner.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, inner.token_to_id(token)) for token in ("<s>", "</s>")]
    )
    inner.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_ids == (tokenizer.special_tokens["<s>"],)
    ids = [*tokenizer.bos_ids, *tokenizer.encode("two plus three"), tokenizer.eos_id]
    assert transformers.AutoTokenizer.from_pretrained(folder).encode("two plus three") == ids


@pytest.mark.parametrize("name", ["", *BUILT_IN_TEMPLATES])
def test_built_in_templates_begin_with_the_bos_token_of_a_base_model(folder: Path, tmp_path: Path, name: str) -> None:
    from schoolhouse.data.chat_settings import ChatConfig
    from schoolhouse.types import Message

    inner = Inner.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    inner.save(str(folder / "tokenizer.json"))
    conversation = Conversation.load(folder, ChatConfig.of(**{"template.name": name}))
    prompt = conversation.prompt((Message("user", "two"),))
    bos = conversation.tokenizer.special_tokens["<s>"]
    assert (prompt[0], prompt.count(bos)) == (bos, 1)
    conversation.save(tmp_path / "saved")
    assert Conversation.load(tmp_path / "saved").prompt((Message("user", "two"),)) == prompt


def test_a_text_that_continues_another_gets_no_blank(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    joined = [*tokenizer.encode("two plus"), *tokenizer.encode(" three", continues=True)]
    assert joined == tokenizer.encode("two plus three")
    assert tokenizer.decode(joined) == "two plus three"
