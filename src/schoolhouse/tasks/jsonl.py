"""Problems from a file, one JSON object a line: like GSM8K, like MATH, or your own (`jsonl:PATH`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.tasks.answer_match import answer_match, decidable, extract, load_math_verify
from schoolhouse.tasks.dataset_task import DatasetTask, in_turn
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

SHAPES = "question/answer (as in GSM8K), problem/solution (as in MATH) or prompt/reference"
OPTIONS = ("holdout", "instruct")
INSTRUCTION = "Put your final answer in \\boxed{}."
ROLES = ("system", "user", "assistant")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def open_jsonl(path: str, seed: int = 0, **options: str) -> JsonLines:
    """The task of a file. Options: `holdout=tenth|all|none`, the part kept for the exam; `instruct=boxed`, which asks
    for a \\boxed{} answer in every problem. Raises SchoolError naming what is wrong and where."""
    for option in options:
        if option not in OPTIONS:
            raise SchoolError(f"jsonl: unknown option `{option}`{suggest(option, OPTIONS)}")
    instruct = options.pop("instruct", "")
    if instruct not in ("", "boxed"):
        raise SchoolError(f"jsonl: option `instruct` is `{instruct}`; it can only be `boxed`")
    return JsonLines(Path(path), seed, instruction=INSTRUCTION if instruct else "", **options)


class JsonLines(DatasetTask):
    """The problems of a file, judged by their final answer (verify.py).

    In process where every reference is a number or words, else in worker processes with math-verify.
    """

    def __init__(self, path: Path, seed: int = 0, holdout: str = "tenth", instruction: str = "") -> None:
        super().__init__(f"jsonl:{path}", seed, holdout)
        self.rows = read_rows(path, instruction)
        self.in_process = all(decidable(problem.reference) for problem, _ in self.rows)

    @cached_property
    def all_problems(self) -> list[Problem]:
        """Every row, in the order of the file."""
        return [problem for problem, _ in self.rows]

    def warm_up(self) -> None:
        """Imports math-verify, which takes half a second."""
        if not self.in_process:
            load_math_verify()

    def grade(self, problem: Problem, reply: Completion) -> Verdict:
        """1 for the reference as final answer, else 0."""
        return answer_match(reply, problem.reference)

    @cached_property
    def _worked(self) -> list[Demonstration]:
        return [
            replace(shown, problem=problem) for problem, shown in self.rows if shown and not self.is_held_out(problem)
        ]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """The worked answers of the train split, in another order each epoch."""
        if not self._worked:
            raise SchoolError(
                f"task {self.name} has no worked examples; those are GSM8K-like rows whose answer is a worked solution "
                "before `####`, and MATH-like rows"
            )
        return in_turn(self._worked, self.seed, "worked", step, count)


def as_row(shown: Demonstration) -> dict[str, Any]:
    """A worked answer as a row of such a file, from which `from_row` makes the same again."""
    problem = shown.problem
    return {
        "messages": [message._asdict() for message in problem.messages],
        "question": problem.messages[-1].content,
        "answer": f"{shown.thought or ''} #### {problem.reference}",
        "thought": shown.thought,
        "said": shown.answer,
        "reference": problem.reference,
        "id": problem.id,
        "family": problem.family,
        "hand": shown.style,
    }


def from_row(row: Mapping[str, Any]) -> Demonstration:
    """The worked answer that `as_row` wrote down."""
    problem = Problem(row["id"], tuple(Message(**said) for said in row["messages"]), row["reference"], row["family"])
    return Demonstration(problem, row["thought"], row["said"], row["hand"])


Row = tuple[Problem, Demonstration | None]
"""A problem and its worked answer, where the row has one."""


def read_rows(path: Path, instruction: str = "") -> list[Row]:
    """Every row of a file. Raises SchoolError naming the file, the line, and what to do about it."""
    rows = []
    try:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                    if text:
                        rows.append(_row(_object(text), path.stem, instruction))
                except _BadRow as error:
                    raise SchoolError(f"{path}:{line}: {error}") from None
                except UnicodeDecodeError:
                    raise SchoolError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise SchoolError(f"cannot read {path}: {error.strerror}; give the path of a file of JSON lines") from error
    if not rows:
        raise SchoolError(f"{path} has no rows; a task needs at least one, with the keys {SHAPES}")
    return rows


class _BadRow(Exception):
    """What is wrong with a row, and what to do."""


def _object(text: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _BadRow(f"not JSON ({error.msg} at column {error.colno}); each line must be one JSON object") from None
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"not JSON that can be read ({error}); each line must be one JSON object") from None
    if not isinstance(row, dict):
        raise _BadRow("not a JSON object; each line must be one, with the keys " + SHAPES)
    return row


def _row(row: Mapping[str, Any], source: str, instruction: str) -> Row:
    rationale, kept = "", None
    if {"messages", "thought", "said", "reference"} <= row.keys():  # written by `as_row`
        asked, reference, kept = "messages", _text(row, "reference"), _kept(row)
    elif "question" in row and "answer" in row:
        asked, answer = "question", _text(row, "answer")
        worked, mark, reference = answer.rpartition("####")
        if mark and not reference.strip():
            raise _BadRow("nothing follows `####` in `answer`; write the final answer there")
        rationale = _CALCULATOR.sub("", worked).strip()
    elif "problem" in row and ("solution" in row or "answer" in row):
        asked, solution = "problem", _text(row, "solution") if "solution" in row else ""
        rationale = solution.strip()
        reference = _text(row, "answer") if "answer" in row else _last_boxed(solution)
    elif "prompt" in row and "reference" in row:
        asked, reference = "prompt", _text(row, "reference")
    else:
        raise _BadRow(f"has the keys {', '.join(map(repr, row)) or 'none'}; it needs {SHAPES}")
    messages = _messages(row, asked)
    name = _id(messages)
    if instruction:
        last = messages[-1]
        messages = (*messages[:-1], last._replace(content=f"{last.content}\n{instruction}"))
    family = row.get("type") or row.get("family") or ""
    problem = Problem(name, messages, reference.strip(), str(family), source, row)
    if kept:
        return problem, Demonstration(problem, *kept)
    boxed = f"\\boxed{{{problem.reference}}}"
    return problem, Demonstration(problem, rationale, boxed, "file") if rationale else None


def _kept(row: Mapping[str, Any]) -> tuple[str | None, str, str]:
    """Thought, answer and hand of a worked answer, as somebody gave it: it need not be the reference."""
    thought, said = row["thought"], row["said"]
    if not isinstance(said, str) or not (thought is None or isinstance(thought, str)):
        raise _BadRow("`said` must be text, and `thought` text or null")
    return thought, said, str(row.get("hand") or "file")


def _last_boxed(solution: str) -> str:
    r"""What the last \boxed{...} of a MATH solution holds; some there have no braces (`$\boxed 2$`)."""
    last = solution[max(solution.rfind("\\boxed"), 0) :]
    if bare := re.match(r"\\boxed\s+([^\s${}\\]+)", last):
        return bare[1]
    found, reason = extract(Completion(None, last))
    if found is None:
        raise _BadRow(f"`solution` has {reason}; put it in \\boxed{{}}, or give it as `answer`")
    return found


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
    """A question as text, or a conversation as a list of {role, content} that ends with the user."""
    if key == "question" or key == "problem" or not isinstance(row[key], list):
        return (Message("user", _text(row, key).strip()),)
    messages = []
    for turn in row[key]:
        if not (isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)):
            raise _BadRow(
                f"a turn of `{key}` is {json.dumps(turn)[:60]}; it must be {{role, content}}, the role one of "
                f"{', '.join(ROLES)}"
            )
        messages.append(Message(turn["role"], turn["content"]))
    if not messages or messages[-1].role != "user":
        raise _BadRow(f"`{key}` must end with a turn of the user")
    return tuple(messages)


def _id(messages: tuple[Message, ...]) -> str:
    """Stable, by what is asked, however it is spaced."""
    text = "\x1f".join(f"{message.role}\x1e{' '.join(message.content.split())}" for message in messages)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
