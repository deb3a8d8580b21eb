"""A completion decoded piece by piece equals the one parsed as a whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schoolhouse.data.chat import Conversation
from schoolhouse.data.stream_decode import StreamDecoder, TextDecoder
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.types import Key, Message, Problem

PROBLEM = Problem("p", (Message("user", "?"),), "")
QWEN = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think>
{{ m.reasoning_content or '' }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
OPENED = QWEN.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n",
)
TOKENIZER = train_tokenizer(["what is 3 and 4? it is 7.\n\n ü 漢字 🙂"] * 4, 300)
CONVERSATIONS = {
    name: Conversation(TOKENIZER, template)
    for name, template in (("default", None), ("qwen", QWEN), ("opened", OPENED))
}


def streamed(conversation: Conversation, ids: list[int]) -> tuple[str, str]:
    decoder, parts = StreamDecoder(conversation), {"thought": "", "answer": ""}
    for delta in [delta for token in ids for delta in decoder.push(token)] + decoder.flush():
        assert delta.text
        parts[delta.part] += delta.text
    return parts["thought"], parts["answer"]


@pytest.mark.parametrize("name", [*CONVERSATIONS])
@pytest.mark.parametrize(
    "text",
    [
        "<think>3+4=7</think>it is 7<|im_end|>",
        "<think>\n3+4=7\n</think>\n\nit is 7<|im_end|>",
        "<think>3\n</think>\n7",
        "<think></think><|im_end|>",
        "7<|im_end|>",
        "<think>漢字 🙂</think>ü<|im_end|>",
        "<think>3</think>7<think>8</think><|im_end|>",
        "",
    ],
)
def test_the_pieces_are_the_parsed_completion(name: str, text: str):
    conversation = CONVERSATIONS[name]
    ids = TOKENIZER.encode(text, parse_special=True)
    finish = "stop" if ids and ids[-1] in conversation.stop_ids else "length"
    prompt = conversation.prompt_rollout(PROBLEM, Key(0, "t"))
    completion = conversation.parse_completion(prompt.append_sampled(ids, [0.0] * len(ids), finish, 0))
    assert streamed(conversation, ids) == (completion.thought or "", completion.answer)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "7", "漢", "🙂", "it is"]), max_size=8))
def test_the_pieces_of_any_text_are_the_parsed_completion(words: list[str]):
    words = words[words.index("<think>") :] if "<think>" in words else words  # nothing before a thought
    for conversation in CONVERSATIONS.values():
        ids = TOKENIZER.encode("".join(words), parse_special=True)
        prompt = conversation.prompt_rollout(PROBLEM, Key(0, "t"))
        completion = conversation.parse_completion(prompt.append_sampled(ids, [0.0] * len(ids), "length", 0))
        thought, answer = streamed(conversation, ids)
        assert answer == completion.answer
        assert thought == (completion.thought or "")


def test_a_character_is_returned_once_it_is_complete():
    decoder = TextDecoder(TOKENIZER)
    pieces = [decoder.push(token) for token in TOKENIZER.encode("a🦉b")]
    assert "".join(pieces) == "a🦉b"
    assert all("\ufffd" not in piece for piece in pieces)


def test_text_without_tags_is_an_answer():
    assert streamed(CONVERSATIONS["default"], TOKENIZER.encode("it is 7")) == ("", "it is 7")
