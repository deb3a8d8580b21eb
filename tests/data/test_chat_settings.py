from __future__ import annotations

from pathlib import Path

import pytest

from schoolhouse.config import dump, load
from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.types import Completion, Demonstration, Key, Message, Problem, SchoolError
from template_zoo import write_model

QUESTION = (Message("user", "2+3?"),)
DATED = (
    "{{ strftime_now('%d %B %Y') }}"
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
SWITCHED = DATED.replace("assistant {%", "assistant {{ '<think></think>' if not enable_thinking }}{%")
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + DATED


def settings(*words: str) -> ChatConfig:
    return load(ChatConfig, None, words)


def test_any_key_of_the_template_is_an_argument_of_it() -> None:
    chat = settings(
        "--template.enable_thinking", "false", "--template.depth=3", "--template.style", "short", "--template.on"
    )
    assert chat.template.arguments == {"enable_thinking": False, "depth": 3, "style": "short", "on": True}


def test_settings_survive_a_file(tmp_path: Path) -> None:
    chat = settings("--template.enable_thinking", "false", "--system", "be kind")
    (tmp_path / "config.yaml").write_text(dump(chat))
    assert load(ChatConfig, tmp_path / "config.yaml") == chat


@pytest.mark.parametrize("word", ["--enable_thinking", "--templates.enable_thinking"])
def test_only_the_group_of_the_template_takes_other_keys(word: str) -> None:
    with pytest.raises(SchoolError, match=f"unknown option {word}"):
        settings(word, "true")


def test_the_date_is_fixed_and_can_be_set(tokenizer: Tokenizer) -> None:
    assert Conversation(tokenizer, DATED).render(QUESTION).startswith("26 July 2024<")
    chat = settings("--template.date", "2026-01-31")
    assert Conversation(tokenizer, DATED, chat).render(QUESTION).startswith("31 January 2026<")
    with pytest.raises(SchoolError, match="the date `today`"):
        Conversation(tokenizer, DATED, settings("--template.date", "today"))


def test_a_system_message_is_put_before_problems_that_have_none(tokenizer: Tokenizer) -> None:
    conversation = Conversation(tokenizer, DATED, settings("--system", "be kind"))
    assert "<|im_start|>system be kind<|im_end|><|im_start|>user 2+3?" in conversation.render(QUESTION)
    own = (Message("system", "be short"), *QUESTION)
    assert "be kind" not in conversation.render(own)
    rollout = conversation.demonstration_rollout(Demonstration(Problem("p", QUESTION, ""), None, "5"), Key(0, "test"))
    assert tuple(rollout.tokens[: rollout.turns[0]]) == conversation.prompt(QUESTION)
    grown = conversation.append_messages(rollout, [Message("user", "sure?")])
    assert grown.tokens == conversation.prompt((*QUESTION, Message("assistant", "5"), Message("user", "sure?")))


def test_a_template_without_system_turns_gets_the_text_before_the_question(tokenizer: Tokenizer) -> None:
    conversation = Conversation(tokenizer, WITHOUT_SYSTEM, settings("--system", "be kind"))
    assert not conversation.facts.knows_system
    assert "<|im_start|>user be kind\n\n2+3?<|im_end|>" in conversation.render(QUESTION)
    assert "user be short\n\n2+3?" in conversation.render((Message("system", "be short"), *QUESTION))


def test_a_template_that_needs_a_system_message_gets_it_from_the_settings(tokenizer: Tokenizer) -> None:
    needy = "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}" + DATED
    conversation = Conversation(tokenizer, needy, settings("--system", "be kind"))
    rollout = conversation.demonstration_rollout(Demonstration(Problem("p", QUESTION, ""), None, "5"), Key(0, "test"))
    grown = conversation.append_messages(rollout, [Message("user", "sure?")])
    assert grown.tokens == conversation.prompt((*QUESTION, Message("assistant", "5"), Message("user", "sure?")))
    with pytest.raises(SchoolError, match="no system message"):
        Conversation(tokenizer, needy).prompt(QUESTION)


def test_an_argument_reaches_the_template(tokenizer: Tokenizer) -> None:
    closed = Conversation(tokenizer, SWITCHED)
    assert closed.render(QUESTION).endswith("<think></think>")
    opened = Conversation(tokenizer, SWITCHED, settings("--template.enable_thinking", "true"))
    assert opened.prompt(QUESTION) == closed.with_arguments({"enable_thinking": True}).prompt(QUESTION)
    assert opened.render(QUESTION).endswith("assistant ")


def test_a_thought_after_a_prompt_that_closes_it_is_refused_with_the_argument(tokenizer: Tokenizer) -> None:
    demonstration = Demonstration(Problem("p", QUESTION, ""), "two and three", "5")
    with pytest.raises(SchoolError, match=r"closes the thought itself.*--template\.enable_thinking true"):
        Conversation(tokenizer, SWITCHED).demonstration_rollout(demonstration, Key(0, "test"))


def test_a_template_can_be_chosen_by_name_or_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    named = Tokenizer(tokenizer._inner, tokenizer.config, DATED, {"switched": SWITCHED})
    path = tmp_path / "mine.jinja"
    path.write_text(WITHOUT_SYSTEM)
    for name, template in (("", DATED), ("default", DATED), ("switched", SWITCHED), (str(path), WITHOUT_SYSTEM)):
        assert Conversation(named, None, settings("--template.name", name)).template == template
    with pytest.raises(SchoolError, match="there is no chat template `swiched`; did you mean `switched`"):
        Conversation(named, None, settings("--template.name", "swiched"))
    with pytest.raises(SchoolError, match="cannot read the chat template"):
        Conversation(named, None, settings("--template.name", str(tmp_path / "other.jinja")))


def test_the_template_of_r1_asks_a_base_model_for_a_thought_and_an_answer(tmp_path: Path) -> None:
    write_model(tmp_path, "", "bytes")
    (tmp_path / "chat_template.jinja").unlink()
    conversation = Conversation.load(tmp_path, settings("--template.name", "r1"))
    text = conversation.render(QUESTION)
    assert text.startswith("A conversation between User and Assistant.")
    assert text.endswith("</answer>. User: 2+3? Assistant:")
    rollout = conversation.demonstration_rollout(
        Demonstration(Problem("p", QUESTION, ""), "two and three", "<answer> 5 </answer>"), Key(0, "test")
    )
    reply = conversation.tokenizer.decode(rollout.last_turn())
    assert reply == " <think>two and three</think> <answer> 5 </answer></s>"
    assert conversation.parse_completion(rollout) == Completion("two and three", "<answer> 5 </answer>", True)
