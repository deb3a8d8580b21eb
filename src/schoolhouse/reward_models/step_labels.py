"""Solutions with labelled steps: labels by people (PRM800K), by the task's own rules, or by sampled continuations.

PRM800K: Lightman et al. 2023, arXiv 2305.20050, one JSON object per line. Monte Carlo labels: Math-Shepherd, Wang et
al. 2023, arXiv 2312.08935. Several continuations are sampled after each step. A soft label is the share of correct
continuations. A hard label says whether any continuation is correct. Both labels estimate a value, not correctness,
because a later step can still correct a wrong step.
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
    """A solution, step by step.

    labels     one for each step: -1 wrong, 0 neutral, 1 correct; None: no label
    reference  the correct answer; never shown to a reward model
    soft       True if labels are values from 0 to 1
    complete   True if the last step ends the solution; False if it was cut at an error, or is an alternative
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
            raise ValueError(f"{len(self.steps)} steps and {len(self.labels)} labels: give one each")

    def truncate_at_first_error(self) -> LabelledSolution:
        """The solution up to its first wrong step. People stop labelling there, so training stops there too."""
        end = next((i + 1 for i, label in enumerate(self.labels) if label == -1 and not self.soft), len(self.steps))
        complete = self.complete and end == len(self.steps)
        return replace(self, steps=self.steps[:end], labels=self.labels[:end], complete=complete)

    def strict(self) -> LabelledSolution:
        """The same solution, with neutral steps labelled as wrong."""
        return replace(self, labels=tuple(-1.0 if label == 0 and not self.soft else label for label in self.labels))

    @property
    def targets(self) -> tuple[float | None, ...]:
        """The target of a reward model for each step, 0 to 1. As in the paper, a neutral step counts as correct."""
        if self.soft:
            return self.labels
        return tuple(None if label is None else float(label >= 0) for label in self.labels)


# --- PRM800K


def read_prm800k(path: Path) -> list[LabelledSolution]:
    """Every labelled path through the solutions of a file.

    A path has the chosen steps of a solution, or some chosen steps and one alternative step after them. A SchoolError
    names the file, the line and the key.
    """
    solutions = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SchoolError(f"cannot read {path}: {error}; give a file of JSON lines in PRM800K's format") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                solutions += _paths(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                reason = f"key {error}" if isinstance(error, KeyError) else str(error)
                raise SchoolError(f"{path}:{number}: not a row of PRM800K: {reason}") from None
    return solutions


def _paths(row: dict[str, Any]) -> Iterator[LabelledSolution]:
    """The labelled paths of a row.

    Rows that tested the labellers have no paths, and rows that a labeller gave up have none. The paper leaves out both
    kinds (Lightman et al. 2023, appendix on data collection).
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
        raise ValueError(f"the rating {rating!r} is none of -1, 0, 1")
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"the value {value!r} is not between 0 and 1")
    return rating if value is None and rating is None else float(rating if value is None else value)


def write_prm800k(path: Path, solutions: Iterable[LabelledSolution]) -> None:
    """Write the same format: one row per solution, one completion per step. A soft label has a rounded rating too."""
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
    """Label steps and answers by the task's own rules. Raises SchoolError if the task cannot check steps."""
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
    """Label each step with `num_continuations` continuations, sampled after the step at temperature 1.

    The label of a step is the share of correct continuations. This is the value of the state for the policy at
    temperature 1. The temperature at which the solutions were sampled does not matter. The label of the answer says
    whether the answer is correct. If the model has no room for a continuation, the step has no label. The second result
    is the number of tokens that were sampled.

    hard  the label is 1 if any continuation is correct, else -1
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
    """Whether each answer is correct; None if the answer is ungraded."""
    groups = grade_rollouts(rollouts, task, conversation.parse_completion)
    rewards = [verdict.reward for group in groups for verdict in group.verdicts]
    return [None if reward is None else reward >= 1.0 for reward in rewards]


def _solution(
    task: Task, conversation: Conversation, rollout: Rollout, labels: tuple[float | None, ...], soft: bool = False
) -> LabelledSolution:
    """`labels` are the labels of the steps, then the label of the answer. A truncated turn has no answer."""
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
