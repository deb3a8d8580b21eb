"""What a solver knows of positions: those that practice leads to are told from the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from schoolhouse.claims.tot_game24 import Positions
from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.policy.policy import Policy
from schoolhouse.tasks.game24 import moves, reaches
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Rollout


@dataclass
class Sayer:
    """Says the word that its list holds for a question, else another."""

    sure: Sequence[str]
    conversation: Conversation

    def extend(self, rollouts: Sequence[Rollout], length: int, **_: Any) -> list[Rollout]:
        words = ["sure" if one.problem.messages[-1].content in self.sure else "impossible" for one in rollouts]
        ids = [self.conversation.tokenizer.encode(word) for word in words]
        return [
            one.append_sampled((*few, self.conversation.stop_ids[0]), (-1.0,) * (len(few) + 1), "stop", 0)
            for one, few in zip(rollouts, ids, strict=True)
        ]


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "p.csv").write_text("Rank,Puzzles\n1,1 1 4 6\n2,1 2 4 6\n3,2 2 4 6\n")
    return f"game24:{tmp_path / 'p.csv'}?holdout=3-3"


def take(spec: str, sure: Sequence[str]) -> dict[str, Any]:
    sayer = Sayer(sure, Conversation(train_tokenizer(["Can 2 4 6 make 24? sure impossible"], 300)))
    return Positions(task=spec, max_new_tokens=16).take(cast(Policy, sayer), 0)["overall"]


def test_who_always_says_impossible_knows_nothing_of_what_can_be_reached(spec: str):
    found = take(spec, [])
    assert (found["sure_met"], found["sure_new"]) == (0.0, 0.0)
    assert found["impossible_new"] == 1.0
    assert found["impossible_met"] is None  # there is none


def test_what_practice_leads_to_is_told_apart(spec: str):
    task: Any = open_task(spec)
    met = {move.left for left in task.practice for move in moves(left)}
    mine = {move.left for move in moves(task.held_out[0]) if reaches(move.left)}
    questions = [f"Can {' '.join(map(str, left))} make 24?" for left in mine & met]
    assert questions
    assert mine - met
    found = take(spec, questions)
    assert found["share_sure"] == pytest.approx(len(mine & met) / len(mine))
    assert (found["sure_met"], found["sure_new"]) == (1.0, 0.0)
