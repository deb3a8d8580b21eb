"""Step labels: PRM800K read and written, labels by the task's rules, and labels by continuations."""

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


def row(*steps: Any, **question: Any) -> dict[str, Any]:
    """A row of PRM800K: steps as (completions, chosen, human), completions as (text, rating)."""
    step_rows = [
        {
            "completions": [{"text": text, "rating": rating, "flagged": False} for text, rating in completions],
            "chosen_completion": chosen,
            "human_completion": human,
        }
        for completions, chosen, human in steps
    ]
    question = {"problem": "1 + 1?", "ground_truth_answer": "2", "pre_generated_answer": "2", **question}
    return {"question": question, "label": {"steps": step_rows, "finish_reason": "solution"}}


def read(tmp_path: Path, *rows: Any) -> list[LabelledSolution]:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_prm800k(path)


# --- PRM800K


def test_the_chosen_path_and_each_alternative_are_read(tmp_path: Path):
    solutions = read(tmp_path, row(([("a", 1), ("b", -1)], 0, None), ([("c", 0), ("d", 1)], 1, None)))
    assert [(solution.steps, solution.labels) for solution in solutions] == [
        (("b",), (-1.0,)),
        (("a", "c"), (None, 0.0)),
        (("a", "d"), (1.0, 1.0)),
    ]
    assert {(s.question, s.reference, s.answer) for s in solutions} == {("1 + 1?", "2", "2")}


@pytest.mark.parametrize(
    "change", [{"is_quality_control_question": True}, {"is_initial_screening_question": True}, "bad_problem", "give_up"]
)
def test_rows_that_the_paper_leaves_out_are_left_out(tmp_path: Path, change: Any):
    kept, left_out = (row(([("a", 1)], 0, None)) for _ in range(2))
    if isinstance(change, dict):
        left_out |= change
    else:
        left_out["label"]["finish_reason"] = change
    assert len(read(tmp_path, left_out, kept)) == 1


def test_a_step_that_a_person_wrote_is_read_without_a_label(tmp_path: Path):
    bad, path = read(tmp_path, row(([("a", -1)], None, {"text": "h"}), ([("b", 1)], 0, None)))[-2:]
    assert (path.steps, path.labels) == (("h", "b"), (None, 1.0))
    assert bad.steps != path.steps


def test_a_solution_that_ends_in_its_first_error_is_read_to_there(tmp_path: Path):
    found_error = row(([("a", 1)], 0, None), ([("b", -1)], None, None))
    found_error["label"]["finish_reason"] = "found_error"
    (solution,) = read(tmp_path, found_error)
    assert (solution.steps, solution.labels, solution.complete) == (("a", "b"), (1.0, -1.0), False)


def test_written_solutions_read_the_same(tmp_path: Path):
    solutions = [
        LabelledSolution("q", ("a", "b"), (1.0, -1.0), "2", "3", complete=False),
        LabelledSolution("q", ("c\u2028d",), (0.0,), "2", "2"),
    ]
    solutions += [LabelledSolution("q", ("e", "f", "g"), (0.01, 0.75, None), "2", "2", soft=True)]
    write_prm800k(tmp_path / "made.jsonl", solutions)
    assert read_prm800k(tmp_path / "made.jsonl") == solutions
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
    cut = LabelledSolution("q", ("a", "b", "c"), (1.0, -1.0, -1.0)).truncate_at_first_error()
    assert (cut.steps, cut.labels, cut.complete) == (("a", "b"), (1.0, -1.0), False)
    whole = LabelledSolution("q", ("a", "b"), (1.0, 0.0))
    assert whole.truncate_at_first_error() == whole


def test_neutral_counts_as_wrong_where_it_is_strict():
    strict = LabelledSolution("q", ("a", "b", "c"), (1.0, 0.0, 1.0)).strict()
    assert strict.labels == (1.0, -1.0, 1.0)
    assert strict.truncate_at_first_error().steps == ("a", "b")
    values = LabelledSolution("q", ("a", "b"), (0.0, 0.5), soft=True)
    assert values.strict() == values


def test_neutral_counts_as_correct_and_values_stay():
    assert LabelledSolution("q", ("a", "b", "c", "d"), (1, 0, -1, None)).targets == (1.0, 1.0, 0.0, None)
    assert LabelledSolution("q", ("a", "b"), (0.25, None), soft=True).targets == (0.25, None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", ":1 is not in PRM800K's format"),
        ("{}", ":1 is not in PRM800K's format: missing key 'question'"),
        ('\n{"question": {}, "label": {}}', ":2 is not in PRM800K's format: missing key 'steps'"),
        (
            json.dumps(row(([("a", 7)], 0, None))),
            ":1 is not in PRM800K's format: the rating of a step must be -1, 0, 1 or null, found 7",
        ),
        (json.dumps(row(([("a", 1)], 4, None))), ":1 is not in PRM800K's format"),
        ("[1]", ":1 is not in PRM800K's format"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(SchoolError, match=message):
        read_prm800k(tmp_path / "labels.jsonl")


# --- labels without people


class ChainFinisher:
    """Finishes a chain correctly in every second continuation, where all its steps are correct; else never."""

    max_seq_len = 300

    def __init__(self, folder: Path, task: School) -> None:
        Conversation(train_tokenizer(["Start at 7. 7+5=2 2-3=9 9*7=3"] * 4, 300)).save(folder)
        self.conversation, self.task = Conversation.load(folder), task

    def extend(self, rollouts: Sequence[Rollout], max_new_tokens: int | Sequence[int], **_: Any) -> list[Rollout]:
        return [self._finish(rollout) for rollout in rollouts]

    def _finish(self, rollout: Rollout) -> Rollout:
        problem = rollout.problem
        steps = (self.conversation.parse_completion(rollout).thought or "").split()
        all_correct = min(self.task.step_labels(problem, steps), default=1) == 1
        right = all_correct and rollout.key.sample % 2 == 0
        answer = problem.reference if right else self.task.wrong_answer(problem)
        return sampled(self.conversation, rollout, f"</think>\\boxed{{{answer}}}<|im_end|>")


def sampled(conversation: Conversation, rollout: Rollout, text: str) -> Rollout:
    ids = conversation.tokenizer.encode(text, parse_special=True)
    return rollout.append_sampled(ids, [-0.1] * len(ids), "stop", 0)


def solution(conversation: Conversation, task: School, wrong_step: int | None = None) -> Rollout:
    """A demonstrated chain, of which one step may be wrong."""
    (demonstration,) = task.demonstrations(0, 1)
    steps = (demonstration.thought or "").split()
    if wrong_step is not None:
        steps[wrong_step] = "1+1=3"
    prompt = conversation.prompt_rollout(demonstration.problem, Key(0, "t"))
    return sampled(conversation, prompt, f"<think>{' '.join(steps)}</think>{demonstration.answer}<|im_end|>")


@pytest.fixture
def task() -> School:
    return School.open("chain", steps="3", styles="full=1")


@pytest.fixture
def policy(tmp_path: Path, task: School) -> ChainFinisher:
    return ChainFinisher(tmp_path, task)


def test_the_rules_of_the_task_label_every_step(policy: ChainFinisher, task: School):
    conversation = policy.conversation
    rollouts = [solution(conversation, task), solution(conversation, task, wrong_step=1)]
    good, bad = label_by_rules(task, conversation, rollouts)
    assert (good.labels, bad.labels) == ((1.0, 1.0, 1.0, 1.0), (1.0, -1.0, -1.0, 1.0))  # the answer is the last step
    assert good.steps[-1] == f"\\boxed{{{good.reference}}}"
    assert good.reference == task.demonstrations(0, 1)[0].problem.reference


def test_soft_labels_are_shares_of_correct_continuations(policy: ChainFinisher, task: School):
    rollouts = [solution(policy.conversation, task, wrong_step=2)]
    (labelled,), tokens = label_by_continuations(policy, task, rollouts, num_continuations=4, max_new_tokens=40)
    assert tokens > 3 * 4 * 5
    assert (labelled.labels, labelled.soft) == ((0.5, 0.5, 0.0, 1.0), True)


def test_hard_labels_tell_whether_any_continuation_is_correct(policy: ChainFinisher, task: School):
    rollouts = [solution(policy.conversation, task, wrong_step=2)]
    (labelled,), _ = label_by_continuations(policy, task, rollouts, num_continuations=4, max_new_tokens=40, hard=True)
    assert (labelled.labels, labelled.soft) == ((1.0, 1.0, -1.0, 1.0), False)


def test_without_room_a_step_has_no_label(policy: ChainFinisher, task: School):
    rollout = solution(policy.conversation, task)
    policy.max_seq_len = step_ends(policy.conversation, rollout, " ")[0] + 40
    (labelled,), _ = label_by_continuations(policy, task, [rollout], num_continuations=4, max_new_tokens=40)
    assert labelled.labels == (0.5, None, None, 1.0)


def test_correct_steps_do_not_make_a_wrong_answer_correct(policy: ChainFinisher, task: School):
    conversation = policy.conversation
    rollout = solution(conversation, task)
    first_step = rollout.truncate(step_ends(conversation, rollout, " ")[0])
    wrong = sampled(conversation, first_step.prefill(()), "</think>\\boxed{77}<|im_end|>")
    (labelled,) = label_by_rules(task, conversation, [wrong])
    assert labelled.labels == (1.0, -1.0)


def test_a_truncated_turn_has_no_answer_to_label(policy: ChainFinisher, task: School):
    conversation = policy.conversation
    rollout = solution(conversation, task)
    truncated = rollout.truncate(step_ends(conversation, rollout, " ")[1])
    (labelled,) = label_by_rules(task, conversation, [truncated])
    assert (len(labelled.steps), labelled.labels, labelled.complete) == (2, (1.0, 1.0), False)
