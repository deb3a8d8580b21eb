"""A policy that says what a function tells it to, cut into tokens as a real one would say it; and a small game."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, Rollout

Reply = Callable[[str, str, Key], str]
"""(the question, what the policy said of its turn so far, key) -> what it says next, markup and all."""


class Scripted:
    max_seq_len = 400

    def __init__(self, folder: Path, reply: Reply) -> None:
        Conversation(train_tokenizer(["Make 24 from 4 9 10 13", "13-9=4 (4 4 10)\n"] * 4, 300)).save(folder)
        self.conversation, self.reply = Conversation.load(folder), reply
        self.calls: list[int] = []

    def extend(
        self,
        rollouts: Sequence[Rollout],
        length: int | Sequence[int],
        *,
        temperature: float = 1.0,
        stop_strings: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        self.calls.append(len(rollouts))
        lengths = [length] * len(rollouts) if isinstance(length, int) else length
        return [self._said(rollout, most, stop_strings) for rollout, most in zip(rollouts, lengths, strict=True)]

    def _said(self, rollout: Rollout, length: int, stop_texts: Sequence[str]) -> Rollout:
        say = self.conversation
        begun = say.tokenizer.decode(rollout.tokens[rollout.turns[-1] :]) if rollout.finish_reason == "prefill" else ""
        question = rollout.problem.messages[-1].content
        ids = say.tokenizer.encode(self.reply(question, begun, rollout.key), parse_special=True)
        ended = next((i + 1 for i, token in enumerate(ids) if token in say.stop_ids), len(ids) + 1)
        for text in stop_texts:
            ended = min(
                ended, next((i for i in range(1, len(ids) + 1) if text in say.tokenizer.decode(ids[:i])), ended)
            )
        finish = "stop" if ended <= min(length, len(ids)) else "length"
        ids = ids[: min(length, ended)]
        return rollout.append_sampled(ids, [-0.1] * len(ids), finish, 0)


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[Reply], Scripted]:
    return lambda reply: Scripted(tmp_path / "model", reply)


@pytest.fixture
def game(tmp_path: Path) -> Game24:
    (tmp_path / "puzzles.csv").write_text("Rank,Puzzles\n1,1 1 4 6\n2,4 9 10 13\n")
    return Game24(tmp_path / "puzzles.csv", holdout="2-2")
