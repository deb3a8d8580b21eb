r"""The task `code:PATH.jsonl`: programs with tests, in rows like those of MBPP and HumanEval.

A row has one of these three forms:

    {"text": "Write a function ...", "code": "def f(x): ...", "test_list": ["assert f(1) == 2"]}
    {"prompt": "def f(x):\n", "canonical_solution": "...", "test": "def check(f): ...", "entry_point": "f"}
    {"prompt": "Write ...", "tests": ["assert f(1) == 2"]}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.data.chats import shown
from schoolhouse.tasks.answers.extraction import extract_answer
from schoolhouse.tasks.code_runner import run_tests
from schoolhouse.tasks.dataset_task import DatasetTask, shuffled_epochs
from schoolhouse.tasks.row_source import RowSource, read_rows
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

OPTIONS = ("holdout", "show_tests")
SHAPES = "text/test_list (as in MBPP), prompt/test/entry_point (as in HumanEval) or prompt/tests"
_SHARE_OF_LIMIT = 0.8
"""The time limit of a program, as a share of its worker's time limit. A slow program must get reward 0 before its
worker is killed."""

_FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)


def open_code(path: str, seed: int = 0, **options: str) -> CodeTask:
    """Open the task of a file of programs with tests.

    The option `holdout` is tenth, all or none. The option `show_tests` is the number of tests that the prompt of an
    MBPP problem contains. A test in the prompt shows the name of the function to the model.
    Raises SchoolError if a row cannot be used; the message names the file, the line and the mistake.
    """
    for option in options:
        if option not in OPTIONS:
            raise SchoolError(f"code: unknown option `{option}`{suggest(option, OPTIONS)}")
    shown_tests = options.pop("show_tests", "1")
    if not shown_tests.isdigit():
        raise SchoolError(f"code: option `show_tests` is `{shown_tests}`; it must be 0 or a positive whole number")
    return CodeTask(Path(path), seed, shown_tests=int(shown_tests), **options)


class CodeTask(DatasetTask):
    """A task whose replies are programs. The reward is 1 if all tests of a program pass.

    The part `tests passed` of a verdict is the share of the tests that pass.
    """

    def __init__(self, path: Path, seed: int = 0, holdout: str = "tenth", shown_tests: int = 1) -> None:
        super().__init__(f"code:{path}", seed, holdout)
        self._problems = _read(path, shown_tests)
        self.files = RowSource(str(path)).files

    @cached_property
    def all_problems(self) -> list[Problem]:
        """The problems of all rows, in the order of the file."""
        return self._problems

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Give reward 1 if the program of a reply passes all tests, else reward 0 and the first error."""
        code = extract_code(completion.answer)
        if not code.strip():
            return Verdict(0.0, "no program")
        info: Mapping[str, Any] = problem.info
        entry = info["entry_point"]
        if entry and not re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(entry)}\b", code, re.MULTILINE):
            code = info["head"] + code  # the reply goes on where the prompt ends
        run = run_tests(code, info["tests"], info["setup"], _SHARE_OF_LIMIT * self.time_limit)
        share = run.passed / run.total
        return Verdict(float(run.passed == run.total), run.error, {"tests passed": share})

    def wrong_answer(self, problem: Problem) -> str:
        """Return a wrong program whose functions return None."""
        names = re.findall(r"^def\s+(\w+)", problem.reference, re.MULTILINE)
        return "\n".join(f"def {name}(*values, **named):\n    return None" for name in names) or "pass"

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Return solutions of the train split. Each epoch has a new order."""
        solved = [problem for problem in self._train if problem.reference]
        if not solved:
            raise SchoolError(f"task {self.name} has no solutions; add a column `code` or `canonical_solution`")
        chosen = shuffled_epochs(solved, self.seed, "worked", step, count)
        return [Demonstration(one, None, f"```python\n{one.reference}\n```", "file") for one in chosen]


def extract_code(text: str) -> str:
    """Return the program of a reply: the last fenced block, the content of \\\\boxed{}, or else the whole text."""
    if blocks := _FENCE.findall(text):
        return blocks[-1]
    if "\\boxed" in text or "<answer>" in text:
        return extract_answer(Completion(None, text))[0] or ""
    return text


def _read(path: Path, shown_tests: int) -> list[Problem]:
    rows = read_rows(str(path), SHAPES)
    problems = [_problem(row.values, row.place, path.stem, shown_tests) for row in rows]
    if not problems:
        raise SchoolError(f"{path} has no rows; add at least one, with the keys {SHAPES}")
    return problems


def _problem(row: Mapping[str, Any], place: str, source: str, shown_tests: int) -> Problem:
    entry = head = ""
    if "test_list" in row and ("text" in row or "prompt" in row):
        tests = _texts(row, "test_list", place)
        setup = "\n".join([*_optional_texts(row, "test_imports"), str(row.get("test_setup_code") or "")])
        request = _text(row, "text" if "text" in row else "prompt", place).strip()
        examples = "\n".join(tests[:shown_tests])
        question = f"{request}\nThe function must pass this test:\n{examples}" if examples else request
        solution = str(row.get("code") or "")
        tests += _optional_texts(row, "challenge_test_list")
    elif {"prompt", "test", "entry_point"} <= row.keys():
        head, entry = _text(row, "prompt", place), _text(row, "entry_point", place)
        setup, tests = "", [f"{_text(row, 'test', place)}\ncheck({entry})"]
        question = f"Complete this Python function:\n```python\n{head.rstrip()}\n```"
        solution = head + row["canonical_solution"] if isinstance(row.get("canonical_solution"), str) else ""
    elif {"prompt", "tests"} <= row.keys():
        setup, question, tests = str(row.get("setup") or ""), _text(row, "prompt", place), _texts(row, "tests", place)
        solution = str(row.get("solution") or row.get("code") or "")
    else:
        known = ", ".join(map(repr, row)) or "none"
        raise SchoolError(f"{place}: the row has the keys {known}, but it needs {SHAPES}")
    info = {"tests": tests, "setup": setup, "entry_point": entry, "head": head}
    problem_id = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Problem(problem_id, (Message("user", question),), solution.strip("\n"), "", source, info)


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise SchoolError(f"{place}: `{key}` is {shown(value)}; it must be text")
    return value


def _texts(row: Mapping[str, Any], key: str, place: str) -> list[str]:
    values = row[key]
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise SchoolError(f"{place}: `{key}` is {shown(values)}; it must be a list of tests as text")
    return list(values)


def _optional_texts(row: Mapping[str, Any], key: str) -> Sequence[str]:
    values = row.get(key) or []
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
