"""Problems from a file with one JSON object per line, as in GSM8K or MATH, or your own (`jsonl:PATH`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.tasks.answers.expressions import load_math_verify
from schoolhouse.tasks.answers.extraction import extract_answer, normalized_answer
from schoolhouse.tasks.answers.options import GRADING_OPTIONS, OURS, Grading, pop_grading
from schoolhouse.tasks.dataset_task import DatasetTask, shuffled_epochs
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

ROW_FORMATS = "question/answer (as in GSM8K), problem/solution (as in MATH) or prompt/reference"
OPTIONS = ("holdout", "instruct", *GRADING_OPTIONS)
INSTRUCTION = "Put your final answer in \\boxed{}."
ROLES = ("system", "user", "assistant")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def open_jsonl(path: str, seed: int = 0, **options: str) -> JsonLines:
    """The task of a file.

    Options: `holdout=tenth|all|none`, the part held out for evaluation; `instruct=boxed` adds a request for a \\boxed{}
    answer to every problem; `extract`, `units` and `grader` (docs/grading.md).
    Raises SchoolError naming file, line and mistake.
    """
    for option in options:
        if option not in OPTIONS:
            raise SchoolError(f"jsonl: unknown option `{option}`{suggest(option, OPTIONS)}")
    grading = pop_grading(options, "jsonl")
    instruct = options.pop("instruct", "")
    if instruct not in ("", "boxed"):
        raise SchoolError(f"jsonl: option `instruct` is `{instruct}`; it must be `boxed`")
    return JsonLines(Path(path), seed, instruction=INSTRUCTION if instruct else "", grading=grading, **options)


class JsonLines(DatasetTask):
    """The problems of a file, graded by their final answer (answers/).

    In process where every reference is a number or text, else in worker processes.
    """

    def __init__(
        self,
        path: Path,
        seed: int = 0,
        holdout: str = "tenth",
        instruction: str = "",
        grading: Grading = OURS,
    ) -> None:
        super().__init__(f"jsonl:{path}", seed, holdout)
        self.rows = read_rows(path, instruction)
        self.grading = grading
        self.notes = grading.notes([problem.reference for problem, _ in self.rows])
        self.in_process = grading.in_process(problem.reference for problem, _ in self.rows)

    @cached_property
    def all_problems(self) -> list[Problem]:
        """Every row, in the order of the file."""
        return [problem for problem, _ in self.rows]

    def warm_up(self) -> None:
        """Imports math-verify, which takes half a second."""
        if not self.in_process:
            load_math_verify()

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Reward 1 if the final answer equals the reference, else 0."""
        return self.grading.grade(problem, completion)

    def normalized_answer(self, completion: Completion) -> Hashable | None:
        """The final answer, found as for a grade."""
        return normalized_answer(completion, self.grading.extraction)

    @cached_property
    def _train_demonstrations(self) -> list[Demonstration]:
        return [
            replace(demonstration, problem=problem)
            for problem, demonstration in self.rows
            if demonstration and not self.is_held_out(problem)
        ]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """The demonstrations of the train split, in a new order each epoch."""
        if not self._train_demonstrations:
            raise SchoolError(
                f"task {self.name} has no demonstrations: write the solution before `####` in `answer` (as in GSM8K), "
                "or give `problem` and `solution` (as in MATH)"
            )
        return shuffled_epochs(self._train_demonstrations, self.seed, "worked", step, count)


def demonstration_to_row(demonstration: Demonstration) -> dict[str, Any]:
    """A demonstration as a row of a file; `demonstration_from_row` restores it."""
    problem = demonstration.problem
    return {
        "messages": [message._asdict() for message in problem.messages],
        "question": problem.messages[-1].content,
        "answer": f"{demonstration.thought or ''} #### {problem.reference}",
        "thought": demonstration.thought,
        "response": demonstration.answer,
        "reference": problem.reference,
        "id": problem.id,
        "family": problem.family,
        "style": demonstration.style,
    }


def demonstration_from_row(row: Mapping[str, Any]) -> Demonstration:
    """The demonstration of a row that `demonstration_to_row` made."""
    messages = tuple(Message(**message) for message in row["messages"])
    problem = Problem(row["id"], messages, row["reference"], row["family"])
    return Demonstration(problem, row["thought"], row["response"], row["style"])


Row = tuple[Problem, Demonstration | None]
"""A problem, and its demonstration where the row has one."""


def read_rows(path: Path, instruction: str = "") -> list[Row]:
    """Every row of a file. Raises SchoolError naming the file, the line and the mistake."""
    rows = []
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                    if text:
                        rows.append(_parse_row(_parse_object(text), path.stem, instruction))
                except _BadRow as error:
                    raise SchoolError(f"{path}:{line}: {error}") from None
                except UnicodeDecodeError:
                    raise SchoolError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        advice = "give the path of a file with one JSON object per line"
        raise SchoolError(f"cannot read {path}: {error.strerror}; {advice}") from error
    if not rows:
        raise SchoolError(f"{path} has no rows; add at least one, with the keys {ROW_FORMATS}")
    return rows


class _BadRow(Exception):
    """A mistake in a row, and what to do about it."""


def _parse_object(text: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _BadRow(f"not JSON ({error.msg} at column {error.colno}); each line must be one JSON object") from None
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"not JSON that can be read ({error}); each line must be one JSON object") from None
    if not isinstance(row, dict):
        raise _BadRow("not a JSON object; each line must be one, with the keys " + ROW_FORMATS)
    return row


def _parse_row(row: Mapping[str, Any], source: str, instruction: str) -> Row:
    rationale, stored = "", None
    if {"messages", "thought", "response", "reference"} <= row.keys():  # from `demonstration_to_row`
        prompt_key, reference, stored = "messages", _text(row, "reference"), _stored_demonstration(row)
    elif "question" in row and "answer" in row:
        prompt_key, answer = "question", _text(row, "answer")
        solution, separator, reference = answer.rpartition("####")
        if separator and not reference.strip():
            raise _BadRow("nothing follows `####` in `answer`; write the final answer there")
        rationale = _CALCULATOR.sub("", solution).strip()
    elif "problem" in row and ("solution" in row or "answer" in row):
        prompt_key, solution = "problem", _text(row, "solution") if "solution" in row else ""
        rationale = solution.strip()
        reference = _text(row, "answer") if "answer" in row else _last_boxed(solution)
    elif "prompt" in row and "reference" in row:
        prompt_key, reference = "prompt", _text(row, "reference")
    else:
        raise _BadRow(f"has the keys {', '.join(map(repr, row)) or 'none'}; it needs {ROW_FORMATS}")
    messages = _messages(row, prompt_key)
    problem_id = _id(messages)
    if instruction:
        last = messages[-1]
        messages = (*messages[:-1], last._replace(content=f"{last.content}\n{instruction}"))
    family = row.get("type") or row.get("family") or ""
    problem = Problem(problem_id, messages, reference.strip(), str(family), source, row)
    if stored:
        return problem, Demonstration(problem, *stored)
    boxed = f"\\boxed{{{problem.reference}}}"
    return problem, Demonstration(problem, rationale, boxed, "file") if rationale else None


def _stored_demonstration(row: Mapping[str, Any]) -> tuple[str | None, str, str]:
    """Thought, answer and style of a demonstration. Its answer need not be spelt as the reference."""
    thought, response = row["thought"], row["response"]
    if not isinstance(response, str) or not (thought is None or isinstance(thought, str)):
        raise _BadRow("`response` must be text, and `thought` text or null")
    return thought, response, str(row.get("style") or "file")


def _last_boxed(solution: str) -> str:
    r"""The content of the last \boxed{...} of a MATH solution; some have no braces (`$\boxed 2$`)."""
    last = solution[max(solution.rfind("\\boxed"), 0) :]
    if bare := re.match(r"\\boxed\s+([^\s${}\\]+)", last):
        return bare[1]
    answer, reason = extract_answer(Completion(None, last))
    if answer is None:
        raise _BadRow(f"`solution` has {reason}; put it in \\boxed{{}}, or give it as `answer`")
    return answer


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _BadRow(f"`{key}` is {json.dumps(value)[:40]}; it must be text or a number")
    if not value.strip():
        raise _BadRow(f"`{key}` is empty; give one, or delete the row")
    return value


def _messages(row: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    """A question as text, or a conversation as a list of {role, content} that ends with a user turn."""
    if key == "question" or key == "problem" or not isinstance(row[key], list):
        return (Message("user", _text(row, key).strip()),)
    messages = []
    for turn in row[key]:
        if not (isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)):
            raise _BadRow(
                f"a turn of `{key}` is {json.dumps(turn)[:60]}; it must be {{role, content}} with a role of "
                f"{', '.join(ROLES)}"
            )
        messages.append(Message(turn["role"], turn["content"]))
    if not messages or messages[-1].role != "user":
        raise _BadRow(f"`{key}` must end with a user turn")
    return tuple(messages)


def _id(messages: tuple[Message, ...]) -> str:
    """A stable id of a prompt, whatever its spacing."""
    text = "\x1f".join(f"{message.role}\x1e{' '.join(message.content.split())}" for message in messages)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
