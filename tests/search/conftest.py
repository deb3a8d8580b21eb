"""A policy whose completions a function writes, cut into tokens as a real policy samples them; and a small game."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, Rollout

Reply = Callable[[str, str, Key], str]
"""(the question, the text of the turn so far, key) -> what follows in the turn, special tokens and all."""


class ScriptedPolicy:
    max_seq_len = 400

    def __init__(self, folder: Path, reply: Reply) -> None:
        Conversation(train_tokenizer(["Make 24 from 4 9 10 13", "13-9=4 (4 4 10)\n"] * 4, 300)).save(folder)
        self.conversation, self.reply = Conversation.load(folder), reply
        self.calls: list[int] = []

    def extend(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: int | Sequence[int],
        *,
        temperature: float = 1.0,
        stop_strings: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        self.calls.append(len(rollouts))
        limits = [max_new_tokens] * len(rollouts) if isinstance(max_new_tokens, int) else max_new_tokens
        return [self._extend_one(rollout, limit, stop_strings) for rollout, limit in zip(rollouts, limits, strict=True)]

    def _extend_one(self, rollout: Rollout, max_new_tokens: int, stop_strings: Sequence[str]) -> Rollout:
        tokenizer, stop_ids = self.conversation.tokenizer, self.conversation.stop_ids
        begun = tokenizer.decode(rollout.tokens[rollout.turns[-1] :]) if rollout.finish_reason == "prefill" else ""
        question = rollout.problem.messages[-1].content
        ids = tokenizer.encode(self.reply(question, begun, rollout.key), parse_special=True)
        end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids) + 1)
        for text in stop_strings:
            end = min(end, next((i for i in range(1, len(ids) + 1) if text in tokenizer.decode(ids[:i])), end))
        finish = "stop" if end <= min(max_new_tokens, len(ids)) else "length"
        ids = ids[: min(max_new_tokens, end)]
        return rollout.append_sampled(ids, [-0.1] * len(ids), finish, 0)


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[Reply], ScriptedPolicy]:
    return lambda reply: ScriptedPolicy(tmp_path / "model", reply)


@pytest.fixture
def game(tmp_path: Path) -> Game24:
    (tmp_path / "puzzles.csv").write_text("Rank,Puzzles\n1,1 1 4 6\n2,4 9 10 13\n")
    return Game24(tmp_path / "puzzles.csv", holdout="2-2")
