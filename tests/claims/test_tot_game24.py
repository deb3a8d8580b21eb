"""The solver's values of positions: those that training puzzles lead to are counted apart from the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from schoolhouse.claims.tot_game24 import ValuePredictions
from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.policy.policy import Policy
from schoolhouse.tasks.game24 import can_make_target, next_moves
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Rollout


@dataclass
class FixedValues:
    """Answers `sure` to the questions of a list, and `impossible` to all others."""

    sure: Sequence[str]
    conversation: Conversation

    def extend(self, prefixes: Sequence[Rollout], max_new_tokens: int, **_: Any) -> list[Rollout]:
        answers = ["sure" if one.problem.messages[-1].content in self.sure else "impossible" for one in prefixes]
        ids = [self.conversation.tokenizer.encode(answer) for answer in answers]
        return [
            prefix.append_sampled((*few, self.conversation.stop_ids[0]), (-1.0,) * (len(few) + 1), "stop", 0)
            for prefix, few in zip(prefixes, ids, strict=True)
        ]


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "p.csv").write_text("Rank,Puzzles\n1,1 1 4 6\n2,1 2 4 6\n3,2 2 4 6\n")
    return f"game24:{tmp_path / 'p.csv'}?holdout=3-3"


def measure(spec: str, sure: Sequence[str]) -> dict[str, Any]:
    model = FixedValues(sure, Conversation(train_tokenizer(["Can 2 4 6 make 24? sure impossible"], 300)))
    return ValuePredictions(task=spec, max_new_tokens=16).run(cast(Policy, model), 0)["overall"]


def test_a_model_that_always_answers_impossible_recognises_no_possible_position(spec: str):
    overall = measure(spec, [])
    assert (overall["sure_seen"], overall["sure_unseen"]) == (0.0, 0.0)
    assert overall["impossible_unseen"] == 1.0
    assert overall["impossible_seen"] is None  # there are none


def test_positions_of_training_puzzles_are_counted_apart(spec: str):
    task: Any = open_task(spec)
    seen = {move.left for puzzle in task.train_puzzles for move in next_moves(puzzle)}
    possible = {move.left for move in next_moves(task.eval_puzzles[0]) if can_make_target(move.left)}
    questions = [f"Can {' '.join(map(str, left))} make 24?" for left in possible & seen]
    assert questions
    assert possible - seen
    overall = measure(spec, questions)
    assert overall["share_sure"] == pytest.approx(len(possible & seen) / len(possible))
    assert (overall["sure_seen"], overall["sure_unseen"]) == (1.0, 0.0)
