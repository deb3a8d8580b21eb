"""The chat in the terminal, with a scripted policy."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import Tokenizer, train_tokenizer
from schoolhouse.serve.chat import HELP, chat
from schoolhouse.types import Rollout, SchoolError


class ScriptedPolicy:
    """A policy with prepared completions, special tokens included.

    None raises SchoolError. "^C" in a completion stands for Ctrl-C at that place.
    """

    version = 0
    max_seq_len = 100

    def __init__(self, folder: Path, *completions: str | None) -> None:
        Conversation(train_tokenizer(["hello there, you think"] * 4, 300)).save(folder)
        self.conversation = Conversation.load(folder)
        self.completions = list(completions)
        self.prompts: list[Rollout] = []
        self.max_new_tokens: list[int] = []

    def extend(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: int | Sequence[int],
        *,
        on_token: Callable[[int, int, float], bool | None] | None = None,
        **_: object,
    ) -> list[Rollout]:
        assert isinstance(max_new_tokens, int)
        (prompt,) = rollouts
        self.prompts.append(prompt)
        self.max_new_tokens.append(max_new_tokens)
        completion = self.completions.pop(0)
        if completion is None:
            raise SchoolError("the conversation is too long")
        sampled, interrupt, _rest = completion.partition("^C")
        ids = self.conversation.tokenizer.encode(sampled, parse_special=True)[:max_new_tokens]
        for token in ids:
            assert on_token is not None
            on_token(0, token, -0.5)
        if interrupt:
            raise KeyboardInterrupt
        stopped = ids[-1] in self.conversation.stop_ids
        return [prompt.append_sampled(ids, [-0.5] * len(ids), "stop" if stopped else "length", 0)]


def run_chat(
    policy: ScriptedPolicy, *lines: str, max_new_tokens: int = 100, colour: bool = False
) -> tuple[str, Rollout | None]:
    """The screen's text, with HELP in place of the help line, and the last conversation."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=colour, color_system="standard" if colour else None, width=400)
    conversation = chat(policy, max_new_tokens, 1.0, lines, console)
    return screen.getvalue().replace(HELP, "HELP"), conversation


def test_thoughts_are_dimmed_and_answers_plain(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "<think>hm, é</think>[b]hello[/b]<|im_end|>")
    screen, _ = run_chat(policy, "hi", colour=True)
    dimmed = "".join(re.findall(r"\x1b\[2;3m(.*?)\x1b\[0m", screen))
    plain = re.sub(r"\x1b\[[\d;]+m.*?\x1b\[0m", "", screen)
    assert dimmed == "hm, é"
    assert plain.strip() == "[b]hello[/b]"


def test_text_appears_while_it_is_sampled(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "<think>hm</think>hello^C")
    screen, _ = run_chat(policy, "hi")
    assert "hm\nhello (cut off)" in screen


@pytest.mark.parametrize("text", ["\U0001f989 owl", "a < b", "x<th", "1 <think", "tail </thi", "\n\n"])
def test_no_text_is_lost_or_repeated(tmp_path: Path, text: str) -> None:
    policy = ScriptedPolicy(tmp_path, f"<think>{text}</think>{text}<|im_end|>")
    screen, _ = run_chat(policy, "hi")
    assert screen.removeprefix("HELP\n").removesuffix("\n\n") == f"{text}\n{text}"


def test_tags_of_several_tokens_are_not_shown_while_they_grow(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "<think>a < b</think>b > a<end>")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_only = HFTokenizer(models.BPE())
    bytes_only.pre_tokenizer, bytes_only.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    bytes_only.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet))
    policy.conversation = Conversation(Tokenizer(bytes_only, {"eos_token": "<end>"}))
    screen, _ = run_chat(policy, "hi")
    assert screen == "HELP\na < b\nb > a\n\n"


def test_the_next_turn_continues_the_sampled_ids(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "<think>t</think>one<|im_end|>", "two<|im_end|>")
    _, conversation = run_chat(policy, "first", "second")
    assert conversation is not None
    assert policy.conversation.tokenizer.decode(conversation.tokens) == (
        "<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\n<think>t</think>one<|im_end|>\n"
        "<|im_start|>user\nsecond<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>"
    )
    assert [prompt.key.turn for prompt in policy.prompts] == [0, 1]


def test_ctrl_c_stops_an_answer_and_the_chat_continues(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "^C", "<think>t^C", "fine<|im_end|>")
    screen, conversation = run_chat(policy, "a", "b", "c")
    assert screen.count("(cut off)") == 2
    assert conversation is not None
    text = policy.conversation.tokenizer.decode(conversation.tokens)
    assert "assistant\n<|im_end|>\n<|im_start|>user\nb" in text
    assert "<think>t<|im_end|>\n<|im_start|>user\nc" in text


def test_a_truncated_answer_is_marked(tmp_path: Path) -> None:
    screen, _ = run_chat(ScriptedPolicy(tmp_path, "<think>hello hello hello"), "hi", max_new_tokens=3)
    assert "(cut off)" in screen


def test_an_answer_is_limited_by_the_context_length(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "yes<|im_end|>", "no<|im_end|>")
    run_chat(policy, "hello?", "hello?", max_new_tokens=90)
    first, second = policy.prompts
    room = policy.max_seq_len - len(first), policy.max_seq_len - len(second)
    assert policy.max_new_tokens == [min(90, room[0]), max(1, room[1])]
    assert policy.max_new_tokens[1] < policy.max_new_tokens[0]


def test_reset_starts_a_new_conversation_with_other_random_numbers(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "one<|im_end|>", "two<|im_end|>")
    run_chat(policy, "first", "/reset", "second")
    assert "first" not in policy.conversation.tokenizer.decode(policy.prompts[1].tokens)
    assert policy.prompts[0].key != policy.prompts[1].key


def test_commands_and_blank_lines_are_not_sent_to_the_model(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path)
    screen, conversation = run_chat(policy, "/help", "  ", "/what", "/quit", "never read")
    assert screen.count("HELP") == 3
    assert conversation is None
    assert not policy.prompts


def test_an_error_is_shown_and_the_chat_continues(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, None, "well<|im_end|>")
    screen, _ = run_chat(policy, "hi", "again")
    assert "the conversation is too long (/reset starts a new chat)" in screen
    assert "well" in screen


def test_special_tokens_and_invalid_characters_in_the_input_are_plain_text(tmp_path: Path) -> None:
    policy = ScriptedPolicy(tmp_path, "ok<|im_end|>")
    run_chat(policy, "a<|im_end|>\udce9b")
    ids = policy.prompts[0].tokens
    assert ids.count(policy.conversation.tokenizer.special_tokens["<|im_end|>"]) == 1
    assert "a<|im_end|>?b" in policy.conversation.tokenizer.decode(ids)
