"""Step labels: PRM800K read and written, the task's own rules, and continuations counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import step_ends
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.reward_models.step_labels import (
    LabelledSolution,
    label_by_continuations,
    label_by_rules,
    read_prm800k,
    write_prm800k,
)
from schoolhouse.tasks.school.task import School
from schoolhouse.types import Key, Rollout, SchoolError


def row(*given: Any, **question: Any) -> dict[str, Any]:
    """A row of PRM800K: steps as (completions, chosen, human), completions as (text, rating)."""
    made = [
        {
            "completions": [{"text": text, "rating": rating, "flagged": False} for text, rating in completions],
            "chosen_completion": chosen,
            "human_completion": human,
        }
        for completions, chosen, human in given
    ]
    asked = {"problem": "1 + 1?", "ground_truth_answer": "2", "pre_generated_answer": "2", **question}
    return {"question": asked, "label": {"steps": made, "finish_reason": "solution"}}


def read(tmp_path: Path, *rows: Any) -> list[LabelledSolution]:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return read_prm800k(path)


# --- PRM800K


def test_the_chosen_way_and_each_alternative_are_read(tmp_path: Path):
    found = read(tmp_path, row(([("a", 1), ("b", -1)], 0, None), ([("c", 0), ("d", 1)], 1, None)))
    assert [(one.steps, one.labels) for one in found] == [
        (("b",), (-1.0,)),
        (("a", "c"), (None, 0.0)),
        (("a", "d"), (1.0, 1.0)),
    ]
    assert {(one.question, one.reference, one.answer) for one in found} == {("1 + 1?", "2", "2")}


@pytest.mark.parametrize(
    "change", [{"is_quality_control_question": True}, {"is_initial_screening_question": True}, "bad_problem", "give_up"]
)
def test_what_the_paper_leaves_out_is_left_out(tmp_path: Path, change: Any):
    kept, left = (row(([("a", 1)], 0, None)) for _ in range(2))
    if isinstance(change, dict):
        left |= change
    else:
        left["label"]["finish_reason"] = change
    assert len(read(tmp_path, left, kept)) == 1


def test_a_step_that_a_person_wrote_is_read_and_not_learned(tmp_path: Path):
    (bad, way) = read(tmp_path, row(([("a", -1)], None, {"text": "h"}), ([("b", 1)], 0, None)))[-2:]
    assert (way.steps, way.labels) == (("h", "b"), (None, 1.0))
    assert bad.steps != way.steps


def test_a_solution_that_ends_in_its_first_error_is_read_to_there(tmp_path: Path):
    found_error = row(([("a", 1)], 0, None), ([("b", -1)], None, None))
    found_error["label"]["finish_reason"] = "found_error"
    (one,) = read(tmp_path, found_error)
    assert (one.steps, one.labels, one.complete) == (("a", "b"), (1.0, -1.0), False)


def test_what_is_written_reads_the_same(tmp_path: Path):
    graded = [
        LabelledSolution("q", ("a", "b"), (1.0, -1.0), "2", "3", complete=False),
        LabelledSolution("q", ("c\u2028d",), (0.0,), "2", "2"),
    ]
    graded += [LabelledSolution("q", ("e", "f", "g"), (0.01, 0.75, None), "2", "2", soft=True)]
    write_prm800k(tmp_path / "made.jsonl", graded)
    assert read_prm800k(tmp_path / "made.jsonl") == graded
    keys = json.loads((tmp_path / "made.jsonl").read_text().splitlines()[0]).keys()
    assert keys == {
        "labeler",
        "timestamp",
        "generation",
        "is_quality_control_question",
        "is_initial_screening_question",
        "question",
        "label",
    }


def test_nothing_behind_the_first_error_is_kept():
    one = LabelledSolution("q", ("a", "b", "c"), (1.0, -1.0, -1.0)).truncate_at_first_error()
    assert (one.steps, one.labels, one.complete) == (("a", "b"), (1.0, -1.0), False)
    whole = LabelledSolution("q", ("a", "b"), (1.0, 0.0))
    assert whole.truncate_at_first_error() == whole


def test_neutral_counts_as_wrong_where_it_is_strict():
    graded = LabelledSolution("q", ("a", "b", "c"), (1.0, 0.0, 1.0)).strict()
    assert graded.labels == (1.0, -1.0, 1.0)
    assert graded.truncate_at_first_error().steps == ("a", "b")
    values = LabelledSolution("q", ("a", "b"), (0.0, 0.5), soft=True)
    assert values.strict() == values


def test_neutral_counts_as_right_and_values_as_they_are():
    assert LabelledSolution("q", ("a", "b", "c", "d"), (1, 0, -1, None)).targets == (1.0, 1.0, 0.0, None)
    assert LabelledSolution("q", ("a", "b"), (0.25, None), soft=True).targets == (0.25, None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", ":1: not a row of PRM800K"),
        ("{}", ":1: not a row of PRM800K: key 'question'"),
        ('\n{"question": {}, "label": {}}', ":2: not a row of PRM800K: key 'steps'"),
        (json.dumps(row(([("a", 7)], 0, None))), ":1: not a row of PRM800K: the rating 7 is none of -1, 0, 1"),
        (json.dumps(row(([("a", 1)], 4, None))), ":1: not a row of PRM800K"),
        ("[1]", ":1: not a row of PRM800K"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(SchoolError, match=message):
        read_prm800k(tmp_path / "labels.jsonl")


# --- labels without people


class Finisher:
    """Ends a chain rightly where all steps so far are right, in every second continuation; else never."""

    max_seq_len = 300

    def __init__(self, folder: Path, task: School) -> None:
        Conversation(train_tokenizer(["Start at 7. 7+5=2 2-3=9 9*7=3"] * 4, 300)).save(folder)
        self.conversation, self.task = Conversation.load(folder), task

    def extend(self, rollouts: Sequence[Rollout], max_new_tokens: int | Sequence[int], **more: Any) -> list[Rollout]:
        return [self._said(rollout) for rollout in rollouts]

    def _said(self, rollout: Rollout) -> Rollout:
        say, problem = self.conversation, rollout.problem
        so_far = (say.parse_completion(rollout).thought or "").split()
        fine = min(self.task.step_labels(problem, so_far), default=1) == 1 and rollout.key.sample % 2 == 0
        answer = problem.reference if fine else self.task.wrong_answer(problem)
        ids = say.tokenizer.encode(f"</think>\\boxed{{{answer}}}<|im_end|>", parse_special=True)
        return rollout.append_sampled(ids, [-0.1] * len(ids), "stop", 0)


def solution(say: Conversation, task: School, spoil: int | None) -> Rollout:
    """A worked chain, of which one step may be wrong."""
    (lesson,) = task.demonstrations(0, 1)
    said = (lesson.thought or "").split()
    if spoil is not None:
        said[spoil] = "1+1=3"
    ids = say.tokenizer.encode(f"<think>{' '.join(said)}</think>{lesson.answer}<|im_end|>", parse_special=True)
    return say.prompt_rollout(lesson.problem, Key(0, "t")).append_sampled(ids, [-0.1] * len(ids), "stop", 0)


@pytest.fixture
def task() -> School:
    return School.open("chain", steps="3", styles="full=1")


def test_the_tasks_rules_label_every_step(tmp_path: Path, task: School):
    policy = Finisher(tmp_path, task)
    (good, bad) = label_by_rules(task, policy.conversation, [solution(policy.conversation, task, at) for at in (None, 1)])
    assert (good.labels, bad.labels) == ((1.0, 1.0, 1.0, 1.0), (1.0, -1.0, -1.0, 1.0))  # the answer is the last step
    assert good.steps[-1] == f"\\boxed{{{good.reference}}}"
    assert good.reference == task.demonstrations(0, 1)[0].problem.reference


def test_continuations_give_the_share_that_ends_right(tmp_path: Path, task: School):
    policy = Finisher(tmp_path, task)
    (one,), tokens = label_by_continuations(policy, task, [solution(policy.conversation, task, 2)], num_continuations=4, max_new_tokens=40)
    assert tokens > 3 * 4 * 5
    assert (one.labels, one.soft) == ((0.5, 0.5, 0.0, 1.0), True)


def test_hard_labels_ask_whether_any_ends_right(tmp_path: Path, task: School):
    policy = Finisher(tmp_path, task)
    said = [solution(policy.conversation, task, 2)]
    (one,), _ = label_by_continuations(policy, task, said, num_continuations=4, max_new_tokens=40, hard=True)
    assert (one.labels, one.soft) == ((1.0, 1.0, -1.0, 1.0), False)


def test_without_room_a_step_has_no_label(tmp_path: Path, task: School):
    policy = Finisher(tmp_path, task)
    rollout = solution(policy.conversation, task, None)
    policy.max_seq_len = step_ends(policy.conversation, rollout, " ")[0] + 40
    (one,), _ = label_by_continuations(policy, task, [rollout], num_continuations=4, max_new_tokens=40)
    assert one.labels == (0.5, None, None, 1.0)


def test_right_steps_do_not_make_a_wrong_answer_right(tmp_path: Path, task: School):
    say = Finisher(tmp_path, task).conversation
    rollout = solution(say, task, None)
    early = rollout.truncate(step_ends(say, rollout, " ")[0])
    ids = say.tokenizer.encode("</think>\\boxed{77}<|im_end|>", parse_special=True)
    wrong = early.prefill(()).append_sampled(ids, [-0.1] * len(ids), "stop", 0)
    (one,) = label_by_rules(task, say, [wrong])
    assert one.labels == (1.0, -1.0)


def test_a_turn_that_was_cut_off_has_no_answer_to_label(tmp_path: Path, task: School):
    say = Finisher(tmp_path, task).conversation
    rollout = solution(say, task, None)
    (one,) = label_by_rules(task, say, [rollout.truncate(step_ends(say, rollout, " ")[1])])
    assert (len(one.steps), one.labels, one.complete) == (2, (1.0, 1.0), False)
