"""Heard piece by piece, a reply is what it is when it is read as a whole."""

from pathlib import Path

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
SAY = {
    name: Conversation(TOKENIZER, template) for name, template in (("ours", None), ("qwen", QWEN), ("opened", OPENED))
}


def heard(say: Conversation, ids: list[int]) -> tuple[str, str]:
    hearing, parts = StreamDecoder(say), {"thought": "", "answer": ""}
    for piece in [piece for token in ids for piece in hearing.push(token)] + hearing.flush():
        assert piece.text
        parts[piece.part] += piece.text
    return parts["thought"], parts["answer"]


@pytest.mark.parametrize("name", [*SAY])
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
def test_pieces_are_the_whole(name: str, text: str):
    say = SAY[name]
    ids = TOKENIZER.encode(text, parse_special=True)
    finish = "stop" if ids and ids[-1] in say.stop_ids else "length"
    reply = say.parse_completion(
        say.prompt_rollout(PROBLEM, Key(0, "t")).append_sampled(ids, [0.0] * len(ids), finish, 0)
    )
    assert heard(say, ids) == (reply.thought or "", reply.answer)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "7", "漢", "🙂", "it is"]), max_size=8))
def test_whatever_is_said_the_pieces_are_the_whole(words: list[str]):
    words = words[words.index("<think>") :] if "<think>" in words else words  # nothing before a thought
    for say in SAY.values():
        ids = TOKENIZER.encode("".join(words), parse_special=True)
        reply = say.parse_completion(
            say.prompt_rollout(PROBLEM, Key(0, "t")).append_sampled(ids, [0.0] * len(ids), "length", 0)
        )
        thought, answer = heard(say, ids)
        assert answer == reply.answer
        assert thought == (reply.thought or "")


def test_a_character_is_given_when_it_is_whole():
    decoding = TextDecoder(TOKENIZER)
    pieces = [decoding.push(token) for token in TOKENIZER.encode("a🦉b")]
    assert "".join(pieces) == "a🦉b"
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_model_without_marks_answers(tmp_path: Path):
    say = SAY["ours"]
    ids = TOKENIZER.encode("it is 7")
    assert heard(say, ids) == ("", "it is 7")
