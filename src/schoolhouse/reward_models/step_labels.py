"""Solutions whose steps are labelled: by people (PRM800K), by the task's own rules, or by how continuations end.

PRM800K: Lightman et al. 2023, arXiv 2305.20050, one JSON object a line. Monte Carlo labels: Math-Shepherd, Wang et al.
2023, arXiv 2312.08935: from behind each step several continuations are sampled, and the share that ends right is its
value (soft) or whether any does its label (hard). A value is not correctness: a wrong step may still be mended.
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
from schoolhouse.tasks.grading import grade
from schoolhouse.types import Rollout, SchoolError

RATINGS = (-1, 0, 1)


@dataclass(frozen=True)
class LabelledSolution:
    """A solution, step by step.

    labels  one per step: -1 wrong, 0 neutral, 1 right, or a value from 0 to 1 where it says `values`; None: no label
    reference  the right answer; never shown to a model that judges
    """

    question: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    reference: str = ""
    answer: str = ""
    soft: bool = False
    complete: bool = True
    """Whether the last step ends the solution; False for one that was cut at an error, or is an alternative."""

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise ValueError(f"{len(self.steps)} steps and {len(self.labels)} labels: give one each")

    def truncate_at_first_error(self) -> LabelledSolution:
        """Without what follows the first wrong step: people stop labelling there, and so does a model's training."""
        end = next((i + 1 for i, label in enumerate(self.labels) if label == -1 and not self.soft), len(self.steps))
        return replace(
            self, steps=self.steps[:end], labels=self.labels[:end], whole=self.complete and end == len(self.steps)
        )

    def strict(self) -> LabelledSolution:
        """The same with every neutral step counted as a wrong one."""
        return replace(self, labels=tuple(-1.0 if label == 0 and not self.soft else label for label in self.labels))

    @property
    def targets(self) -> tuple[float | None, ...]:
        """What a judge should say of each step, 0 to 1: neutral counts as right, as in the paper."""
        if self.soft:
            return self.labels
        return tuple(None if label is None else float(label >= 0) for label in self.labels)


# --- PRM800K


def read_prm800k(path: Path) -> list[LabelledSolution]:
    """Every labelled way through the file's solutions: the chosen one, and each alternative behind what was chosen.

    Raises SchoolError naming file, line and key.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SchoolError(f"cannot read {path}: {error}; give a file of JSON lines in PRM800K's format") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found += _ways(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                what = f"key {error}" if isinstance(error, KeyError) else str(error)
                raise SchoolError(f"{path}:{number}: not a row of PRM800K: {what}") from None
    return found


def _ways(row: dict[str, Any]) -> Iterator[LabelledSolution]:
    """Nothing of rows that checked the labellers, who all saw the same, or that they could not finish: the paper leaves
    both out (Lightman et al. 2023, appendix on data collection)."""
    question = row["question"]
    checks = row.get("is_quality_control_question") or row.get("is_initial_screening_question")
    if checks or row["label"].get("finish_reason") in ("bad_problem", "give_up"):
        return
    path: list[tuple[str, float | None]] = []
    values = any("value" in one for step in row["label"]["steps"] for one in step["completions"] or ())

    def way(labelled: Iterable[tuple[str, float | None]], whole: bool) -> LabelledSolution:
        texts, labels = zip(*labelled, strict=True)
        answer, reference = question.get("pre_generated_answer") or "", question.get("ground_truth_answer") or ""
        return LabelledSolution(question["problem"], texts, labels, reference, answer, values, whole)

    for step in row["label"]["steps"]:
        completions, human = step["completions"] or [], step.get("human_completion")
        taken = step.get("chosen_completion")
        if taken is None and completions and not human:
            taken = 0  # the step that ended the solution
        for at, one in enumerate(completions):
            if at != taken and one["rating"] is not None:
                yield way([*((text, None) for text, _ in path), (one["text"], _label(one))], whole=False)
        if taken is not None:
            one = completions[taken]
            path.append((one["text"], _label(one)))
        elif human:
            path.append((human["text"] if isinstance(human, dict) else human, None))
    if any(label is not None for _, label in path):
        yield way(path, row["label"].get("finish_reason") == "solution")


def _label(completion: dict[str, Any]) -> float | None:
    value, rating = completion.get("value"), completion["rating"]
    if value is None and rating not in (None, *RATINGS):
        raise ValueError(f"the rating {rating!r} is none of -1, 0, 1")
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"the value {value!r} is not between 0 and 1")
    return rating if value is None and rating is None else float(rating if value is None else value)


def write_prm800k(path: Path, solutions: Iterable[LabelledSolution]) -> None:
    """The same format, a row a solution and a completion a step. A value stands beside the rating that it rounds to."""
    write_jsonl(path, map(_row, solutions))


def _row(one: LabelledSolution) -> dict[str, Any]:
    return {
        "labeler": None,
        "timestamp": None,
        "generation": None,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {
            "problem": one.question,
            "ground_truth_solution": None,
            "ground_truth_answer": one.reference,
            "pre_generated_steps": list(one.steps),
            "pre_generated_answer": one.answer,
            "pre_generated_verifier_score": None,
        },
        "label": {
            "steps": [
                {
                    "completions": [_completion(text, label, one.soft)],
                    "human_completion": None,
                    "chosen_completion": 0,
                }
                for text, label in zip(one.steps, one.labels, strict=True)
            ],
            "total_time": None,
            "finish_reason": "solution" if one.complete else "found_error",
        },
    }


def _completion(text: str, label: float | None, values: bool) -> dict[str, Any]:
    if label is None:
        return {"text": text, "rating": None, "flagged": False}
    rating = (1 if label >= 0.5 else -1) if values else int(label)
    return {"text": text, "rating": rating, "flagged": False, **({"value": label} if values else {})}


# --- labels without people


def label_by_rules(task: Task, conversation: Conversation, rollouts: Sequence[Rollout]) -> list[LabelledSolution]:
    """What the task itself says of each step, the answer included. Raises SchoolError where it cannot check steps."""
    ratings = [
        map(float, task.step_labels(rollout.problem, steps(conversation, rollout, task.delimiter))) for rollout in rollouts
    ]
    right = _right(task, conversation, rollouts)
    return [
        _graded(task, conversation, rollout, (*labels, None if is_right is None else 1.0 if is_right else -1.0))
        for rollout, labels, is_right in zip(rollouts, ratings, right, strict=True)
    ]


def label_by_continuations(
    policy: Generator, task: Task, rollouts: Sequence[Rollout], num_continuations: int, max_new_tokens: int, hard: bool = False
) -> tuple[list[LabelledSolution], int]:
    """The share of `count` continuations of up to `length` tokens behind each step that ends right, at temperature 1:
    what the state is worth to the policy as it is, however warm the solutions were sampled.

    hard  1 where any does, else -1, instead of the share
    Behind the answer there is nothing to continue: it ended right or it did not.
    A step behind which the model has no room has no label. And the tokens that were sampled.
    """
    say = policy.conversation
    ends = [step_ends(say, rollout, task.delimiter) for rollout in rollouts]
    cuts = [[rollout.truncate(end).prefill(()) for end in few] for rollout, few in zip(rollouts, ends, strict=True)]
    room = policy.max_seq_len - max_new_tokens
    asked = [
        replace(cut, key=cut.key._replace(purpose="continue", step=n, problem=at, sample=g))
        for n, few in enumerate(cuts)
        for at, cut in enumerate(few)
        if len(cut) <= room
        for g in range(num_continuations)
    ]
    said = policy.extend(asked, max_new_tokens)
    tokens = sum(len(after) - len(before) for before, after in zip(asked, said, strict=True))
    groups = iter(grade(said, task, say.parse_completion))
    graded = []
    for rollout, few, is_right in zip(rollouts, cuts, _right(task, say, rollouts), strict=True):
        labels: list[float | None] = []
        for cut in few:
            scores = next(groups).rewards if len(cut) <= room else ()
            share = sum(score >= 1.0 for score in scores) / len(scores) if scores else None
            labels.append(share if share is None or not hard else 1.0 if share > 0 else -1.0)
        labels.append(None if is_right is None else float(is_right) if not hard or is_right else -1.0)
        graded.append(_graded(task, say, rollout, tuple(labels), not hard))
    return graded, tokens


def _right(task: Task, say: Conversation, rollouts: Sequence[Rollout]) -> list[bool | None]:
    """Whether each answer is right; None where nobody could judge."""
    verdicts = [verdict for group in grade(rollouts, task, say.parse_completion) for verdict in group.verdicts]
    return [None if verdict.reward is None else verdict.reward >= 1.0 for verdict in verdicts]


def _graded(
    task: Task, say: Conversation, rollout: Rollout, labels: tuple[float | None, ...], values: bool = False
) -> LabelledSolution:
    """`labels` of the steps and, last, of the answer, which is left out where the turn was cut off."""
    problem, reply, said = rollout.problem, say.parse_completion(rollout), steps(say, rollout, task.delimiter)
    told = (*said, reply.answer) if reply.complete else tuple(said)
    about = (problem.messages[-1].content, told, labels[: len(told)], problem.reference, reply.answer, values)
    return LabelledSolution(*about, complete=reply.complete)
