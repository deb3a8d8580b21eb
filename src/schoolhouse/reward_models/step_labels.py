"""Solutions with labelled steps.

The labels come from people (PRM800K), from the task's rules, or from sampled continuations of the solution.

PRM800K is a data set of Lightman et al. 2023 (arXiv 2305.20050), with one JSON object per line. Labels from
continuations are Monte Carlo labels, as in Math-Shepherd (Wang et al. 2023, arXiv 2312.08935): several continuations
are sampled after each step. A soft label is the fraction of correct continuations. A hard label says whether any
continuation is correct. Soft labels and hard labels estimate the value of a step, not its correctness, because a later
step can still correct a wrong step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schoolhouse.data.chat import Conversation
from schoolhouse.data.steps import step_ends, steps
from schoolhouse.policy.interface import Generator
from schoolhouse.runs.atomic_io import write_jsonl
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_rollouts
from schoolhouse.types import Rollout, SchoolError

RATINGS = (-1, 0, 1)


@dataclass(frozen=True)
class LabelledSolution:
    """A solution as a list of steps with one label for each step.

    `labels`: the label of each step: -1 is wrong, 0 is neutral, 1 is correct, and None means that there is no label.
    `reference`: the correct answer; the reward model never sees the correct answer.
    `soft`: whether the labels are values from 0 to 1.
    `complete`: whether the last step ends the solution. `complete` is false if the solution was cut at an error, or if
        its last step is an alternative step.
    """

    question: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    reference: str = ""
    answer: str = ""
    soft: bool = False
    complete: bool = True

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise ValueError(
                f"found {len(self.steps)} steps but {len(self.labels)} labels: give one label for each step"
            )

    def truncate_at_first_error(self) -> LabelledSolution:
        """Cut the solution after its first wrong step.

        The people who labelled PRM800K also stopped at the first wrong step.
        """
        end = next((i + 1 for i, label in enumerate(self.labels) if label == -1 and not self.soft), len(self.steps))
        complete = self.complete and end == len(self.steps)
        return replace(self, steps=self.steps[:end], labels=self.labels[:end], complete=complete)

    def strict(self) -> LabelledSolution:
        """Return the same solution, but with neutral steps labelled as wrong."""
        return replace(self, labels=tuple(-1.0 if label == 0 and not self.soft else label for label in self.labels))

    @property
    def targets(self) -> tuple[float | None, ...]:
        """The training targets of a reward model: a number from 0 to 1 for each step.

        As in the paper of PRM800K, a neutral step counts as correct.
        """
        if self.soft:
            return self.labels
        return tuple(None if label is None else float(label >= 0) for label in self.labels)


# --- PRM800K


def read_prm800k(path: Path) -> list[LabelledSolution]:
    """Read every labelled path through the solutions of a file in PRM800K's format.

    A path is a list of steps: the chosen steps of a solution, or some chosen steps and one alternative step after them.
    If a row is wrong, a SchoolError names the file, the line and the key.
    """
    solutions = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SchoolError(f"cannot read {path}: {error}; give a JSON lines file in PRM800K's format") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                solutions += _paths(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                reason = f"missing key {error}" if isinstance(error, KeyError) else str(error)
                raise SchoolError(f"line {path}:{number} is not in PRM800K's format: {reason}") from None
    return solutions


def _paths(row: dict[str, Any]) -> Iterator[LabelledSolution]:
    """Yield the labelled paths of a row.

    The function skips rows that tested the quality of the labellers, and rows that a labeller did not finish. The paper
    of PRM800K also leaves out rows that test labellers and unfinished rows (Lightman et al. 2023, appendix on data
    collection).
    """
    question = row["question"]
    is_test = row.get("is_quality_control_question") or row.get("is_initial_screening_question")
    if is_test or row["label"].get("finish_reason") in ("bad_problem", "give_up"):
        return
    path: list[tuple[str, float | None]] = []
    soft = any("value" in completion for step in row["label"]["steps"] for completion in step["completions"] or ())

    def solution(steps: Iterable[tuple[str, float | None]], complete: bool) -> LabelledSolution:
        texts, labels = zip(*steps, strict=True)
        answer, reference = question.get("pre_generated_answer") or "", question.get("ground_truth_answer") or ""
        return LabelledSolution(question["problem"], texts, labels, reference, answer, soft, complete)

    for step in row["label"]["steps"]:
        completions, human = step["completions"] or [], step.get("human_completion")
        chosen = step.get("chosen_completion")
        if chosen is None and completions and not human:
            chosen = 0  # the step that ended the solution
        for at, completion in enumerate(completions):
            if at != chosen and completion["rating"] is not None:
                unlabelled = [(text, None) for text, _ in path]
                yield solution([*unlabelled, (completion["text"], _label(completion))], complete=False)
        if chosen is not None:
            path.append((completions[chosen]["text"], _label(completions[chosen])))
        elif human:
            path.append((human["text"] if isinstance(human, dict) else human, None))
    if any(label is not None for _, label in path):
        yield solution(path, row["label"].get("finish_reason") == "solution")


def _label(completion: dict[str, Any]) -> float | None:
    value, rating = completion.get("value"), completion["rating"]
    if value is None and rating not in (None, *RATINGS):
        raise ValueError(f"the rating of a step must be -1, 0, 1 or null, found {rating!r}")
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"the value of a step must be between 0 and 1, found {value!r}")
    return rating if value is None and rating is None else float(rating if value is None else value)


def write_prm800k(path: Path, solutions: Iterable[LabelledSolution]) -> None:
    """Write solutions in PRM800K's format, with one row per solution and one completion per step.

    A step with a soft label also gets a rating, which is the rounded soft label.
    """
    write_jsonl(path, map(_row, solutions))


def _row(solution: LabelledSolution) -> dict[str, Any]:
    return {
        "labeler": None,
        "timestamp": None,
        "generation": None,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {
            "problem": solution.question,
            "ground_truth_solution": None,
            "ground_truth_answer": solution.reference,
            "pre_generated_steps": list(solution.steps),
            "pre_generated_answer": solution.answer,
            "pre_generated_verifier_score": None,
        },
        "label": {
            "steps": [
                {
                    "completions": [_completion(text, label, solution.soft)],
                    "human_completion": None,
                    "chosen_completion": 0,
                }
                for text, label in zip(solution.steps, solution.labels, strict=True)
            ],
            "total_time": None,
            "finish_reason": "solution" if solution.complete else "found_error",
        },
    }


def _completion(text: str, label: float | None, soft: bool) -> dict[str, Any]:
    if label is None:
        return {"text": text, "rating": None, "flagged": False}
    rating = (1 if label >= 0.5 else -1) if soft else int(label)
    return {"text": text, "rating": rating, "flagged": False, **({"value": label} if soft else {})}


# --- labels without people


def label_by_rules(task: Task, conversation: Conversation, rollouts: Sequence[Rollout]) -> list[LabelledSolution]:
    """Label the steps and the answers of rollouts by the task's rules.

    Raises SchoolError if the task cannot check steps.
    """
    step_labels = [
        map(float, task.step_labels(rollout.problem, steps(conversation, rollout, task.delimiter)))
        for rollout in rollouts
    ]
    correct = _correct(task, conversation, rollouts)
    return [
        _solution(task, conversation, rollout, (*labels, None if is_correct is None else 1.0 if is_correct else -1.0))
        for rollout, labels, is_correct in zip(rollouts, step_labels, correct, strict=True)
    ]


def label_by_continuations(
    policy: Generator,
    task: Task,
    rollouts: Sequence[Rollout],
    num_continuations: int,
    max_new_tokens: int,
    hard: bool = False,
) -> tuple[list[LabelledSolution], int]:
    """Label each step with `num_continuations` continuations, which are sampled after the step at temperature 1.

    The label of a step is the fraction of correct continuations. The fraction of correct continuations estimates the
    value of the state for the policy at temperature 1. The temperature at which the solutions were sampled does not
    matter. The label of the answer says whether the answer is correct. If the model's context has no room for a
    continuation, the step has no label. The second return value of `label_by_continuations` is the number of sampled
    tokens.

    `hard`: if true, the label of a step is 1 if any continuation is correct, and -1 otherwise.
    """
    conversation = policy.conversation
    ends = [step_ends(conversation, rollout, task.delimiter) for rollout in rollouts]
    states = [[rollout.truncate(end).prefill(()) for end in own] for rollout, own in zip(rollouts, ends, strict=True)]
    max_prefix = policy.max_seq_len - max_new_tokens
    prefixes = [
        replace(state, key=state.key._replace(purpose="continue", step=n, problem=at, sample=g))
        for n, own in enumerate(states)
        for at, state in enumerate(own)
        if len(state) <= max_prefix
        for g in range(num_continuations)
    ]
    continued = policy.extend(prefixes, max_new_tokens)
    tokens = sum(len(after) - len(before) for before, after in zip(prefixes, continued, strict=True))
    groups = iter(grade_rollouts(continued, task, conversation.parse_completion))
    solutions = []
    correct = _correct(task, conversation, rollouts)
    for rollout, own, is_correct in zip(rollouts, states, correct, strict=True):
        labels: list[float | None] = []
        for state in own:
            rewards = next(groups).rewards if len(state) <= max_prefix else ()
            share = sum(reward >= 1.0 for reward in rewards) / len(rewards) if rewards else None
            labels.append(share if share is None or not hard else 1.0 if share > 0 else -1.0)
        labels.append(None if is_correct is None else float(is_correct) if not hard or is_correct else -1.0)
        solutions.append(_solution(task, conversation, rollout, tuple(labels), not hard))
    return solutions, tokens


def _correct(task: Task, conversation: Conversation, rollouts: Sequence[Rollout]) -> list[bool | None]:
    """Return for each answer whether it is correct, or None if the answer is ungraded."""
    groups = grade_rollouts(rollouts, task, conversation.parse_completion)
    rewards = [verdict.reward for group in groups for verdict in group.verdicts]
    return [None if reward is None else reward >= 1.0 for reward in rewards]


def _solution(
    task: Task, conversation: Conversation, rollout: Rollout, labels: tuple[float | None, ...], soft: bool = False
) -> LabelledSolution:
    """Make a labelled solution from a rollout.

    `labels` has the labels of all steps, and then the label of the answer. A truncated turn has no answer.
    """
    problem, completion = rollout.problem, conversation.parse_completion(rollout)
    texts = steps(conversation, rollout, task.delimiter)
    if completion.complete:
        texts.append(completion.answer)
    return LabelledSolution(
        problem.messages[-1].content,
        tuple(texts),
        labels[: len(texts)],
        problem.reference,
        completion.answer,
        soft,
        completion.complete,
    )
