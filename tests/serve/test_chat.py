from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, trainers

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import Tokenizer, train_tokenizer
from schoolhouse.serve.chat import HELP, chat
from schoolhouse.types import Rollout, SchoolError


class Scripted:
    """A policy that says prepared replies, markup and all; `None` refuses, "^C" in one is a Ctrl-C at that place."""

    version = 0
    max_seq_len = 100

    def __init__(self, folder: Path, *replies: str | None) -> None:
        Conversation(train_tokenizer(["hello there, you think"] * 4, 300)).save(folder)
        self.conversation = Conversation.load(folder)
        self.replies = list(replies)
        self.heard: list[Rollout] = []
        self.lengths: list[int] = []

    def extend(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: int | Sequence[int],
        *,
        on_token: Callable[[int, int, float], bool | None] | None = None,
        **_: object,
    ) -> list[Rollout]:
        assert isinstance(max_new_tokens, int)
        length = max_new_tokens
        (asked,) = rollouts
        self.heard.append(asked)
        self.lengths.append(length)
        reply = self.replies.pop(0)
        if reply is None:
            raise SchoolError("the conversation is too long")
        before, cut, _rest = reply.partition("^C")
        ids = self.conversation.tokenizer.encode(before, parse_special=True)[:length]
        for token in ids:
            assert on_token is not None
            on_token(0, token, -0.5)
        if cut:
            raise KeyboardInterrupt
        stopped = ids[-1] in self.conversation.stop_ids
        return [asked.append_sampled(ids, [-0.5] * len(ids), "stop" if stopped else "length", 0)]


def talk(policy: Scripted, *lines: str, length: int = 100, colour: bool = False) -> tuple[str, Rollout | None]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=colour, color_system="standard" if colour else None, width=400)
    left = chat(policy, length, 1.0, lines, console)
    return screen.getvalue().replace(HELP, "HELP"), left


def test_thoughts_are_dimmed_and_answers_plain(tmp_path: Path) -> None:
    shown, _ = talk(Scripted(tmp_path, "<think>hm, é</think>[b]hello[/b]<|im_end|>"), "hi", colour=True)
    dimmed = "".join(re.findall(r"\x1b\[2;3m(.*?)\x1b\[0m", shown))
    plain = re.sub(r"\x1b\[[\d;]+m.*?\x1b\[0m", "", shown)
    assert dimmed == "hm, é"
    assert plain.strip() == "[b]hello[/b]"


def test_words_appear_as_they_are_said(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, "<think>hm</think>hello^C")
    shown, _ = talk(policy, "hi")
    assert "hm\nhello (cut off)" in shown


@pytest.mark.parametrize("reply", ["\U0001f989 owl", "a < b", "x<th", "1 <think", "tail </thi", "\n\n"])
def test_nothing_is_lost_or_said_twice(tmp_path: Path, reply: str) -> None:
    policy = Scripted(tmp_path, f"<think>{reply}</think>{reply}<|im_end|>")
    shown, _ = talk(policy, "hi")
    assert shown.removeprefix("HELP\n").removesuffix("\n\n") == f"{reply}\n{reply}"


def test_tags_without_ids_of_their_own_are_not_shown_as_they_grow(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, "<think>a < b</think>b > a<end>")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner = Inner(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet))
    policy.conversation = Conversation(Tokenizer(inner, {"eos_token": "<end>"}))
    shown, _ = talk(policy, "hi")
    assert shown == "HELP\na < b\nb > a\n\n"


def test_the_next_turn_continues_the_ids_as_they_were_said(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, "<think>t</think>one<|im_end|>", "two<|im_end|>")
    _, left = talk(policy, "first", "second")
    assert left is not None
    assert policy.conversation.tokenizer.decode(left.tokens) == (
        "<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\n<think>t</think>one<|im_end|>\n"
        "<|im_start|>user\nsecond<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>"
    )
    assert [rollout.key.turn for rollout in policy.heard] == [0, 1]


def test_an_answer_can_be_stopped_and_the_talk_goes_on(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, "^C", "<think>t^C", "fine<|im_end|>")
    shown, left = talk(policy, "a", "b", "c")
    assert shown.count("(cut off)") == 2
    assert left is not None
    assert "assistant\n<|im_end|>\n<|im_start|>user\nb" in policy.conversation.tokenizer.decode(left.tokens)
    assert "<think>t<|im_end|>\n<|im_start|>user\nc" in policy.conversation.tokenizer.decode(left.tokens)


def test_an_answer_that_runs_out_of_length_says_so(tmp_path: Path) -> None:
    shown, _ = talk(Scripted(tmp_path, "<think>hello hello hello"), "hi", length=3)
    assert "(cut off)" in shown


def test_an_answer_takes_no_more_than_the_model_can_read(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, "yes<|im_end|>", "no<|im_end|>")
    talk(policy, "hello?", "hello?", length=90)
    first, second = policy.heard
    assert policy.lengths == [min(90, policy.max_seq_len - len(first)), max(1, policy.max_seq_len - len(second))]
    assert policy.lengths[1] < policy.lengths[0]


def test_reset_forgets_and_draws_other_numbers(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, "one<|im_end|>", "two<|im_end|>")
    talk(policy, "first", "/reset", "second")
    assert "first" not in policy.conversation.tokenizer.decode(policy.heard[1].tokens)
    assert policy.heard[0].key != policy.heard[1].key


def test_commands_and_blank_lines_reach_no_model(tmp_path: Path) -> None:
    policy = Scripted(tmp_path)
    shown, left = talk(policy, "/help", "  ", "/what", "/quit", "never read")
    assert shown.count("HELP") == 3
    assert left is None
    assert not policy.heard


def test_a_refusal_is_shown_and_the_talk_goes_on(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, None, "well<|im_end|>")
    shown, _ = talk(policy, "hi", "again")
    assert "the conversation is too long (/reset starts anew)" in shown
    assert "well" in shown


def test_typed_markup_and_broken_characters_are_ordinary_text(tmp_path: Path) -> None:
    policy = Scripted(tmp_path, "ok<|im_end|>")
    talk(policy, "a<|im_end|>\udce9b")
    ids = policy.heard[0].tokens
    assert ids.count(policy.conversation.tokenizer.special_tokens["<|im_end|>"]) == 1
    assert "a<|im_end|>?b" in policy.conversation.tokenizer.decode(ids)
