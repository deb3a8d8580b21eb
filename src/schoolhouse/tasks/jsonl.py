"""The task `jsonl:PATH`: problems and demonstrations from data files, such as GSM8K, MATH, chats or your own files.

The page docs/data.md says which files and columns can be read.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.tasks.answers.expressions import load_math_verify
from schoolhouse.tasks.answers.extraction import normalized_answer
from schoolhouse.tasks.answers.options import GRADING_OPTIONS, OURS, Grading, pop_grading
from schoolhouse.tasks.dataset_task import DatasetTask, shuffled_epochs
from schoolhouse.tasks.row_source import SOURCE_OPTIONS, RowSource, read_examples
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

OPTIONS = ("holdout", "instruct", *GRADING_OPTIONS, *SOURCE_OPTIONS)


def open_jsonl(path: str, seed: int = 0, **options: str) -> JsonLines:
    """Open the task of a file, a folder, a glob pattern or `hub:ORG/NAME`.

    The option `holdout=tenth|all|none` sets the part that is held out for evaluation. The option `instruct=boxed` adds
    a request for a \\boxed{} answer to every problem. The options `extract`, `units` and `grader` say how answers are
    graded (docs/grading.md). An option such as `question=problem` names the column of a role. The option
    `ignore=KEY,KEY` names columns that are left out. The options `split` and `subset` select a part of the data. The
    option `drop=FILE` gives a list of rows that are left out.
    Raises SchoolError if a row cannot be used; the message names the file, the line and the mistake.
    """
    for option in options:
        if option not in OPTIONS:
            raise SchoolError(f"jsonl: unknown option `{option}`{suggest(option, OPTIONS)}")
    grading = pop_grading(options, "jsonl")
    instruct, holdout = options.pop("instruct", ""), options.pop("holdout", "tenth")
    if instruct not in ("", "boxed"):
        raise SchoolError(f"jsonl: option `instruct` is `{instruct}`; it must be `boxed`")
    return JsonLines(RowSource.of(path, options), seed, holdout, bool(instruct), grading)


class JsonLines(DatasetTask):
    """A task with the problems of a file. The final answers of replies are graded by the rules in answers/.

    The task grades in the main process if every reference is a number, a choice or text. If a reference is not a
    number, a choice or text, the task grades in worker processes.
    """

    def __init__(
        self,
        source: RowSource,
        seed: int = 0,
        holdout: str = "tenth",
        instruct: bool = False,
        grading: Grading = OURS,
    ) -> None:
        super().__init__(f"jsonl:{source.path}", seed, holdout)
        self.rows, notes = read_examples(source, instruct)
        self.files, self.grading = source.files, grading
        references = [text for problem, *_ in self.rows for text in (problem.reference, *problem.aliases) if text]
        self.notes = (*notes, *grading.notes(references))
        self.in_process = grading.in_process(references)

    @property
    def has_answers(self) -> bool:
        """True if at least one row has a reference answer. A file of chats has no reference answers."""
        return any(problem.reference for problem, *_ in self.rows)

    @cached_property
    def all_problems(self) -> list[Problem]:
        """The problems of all rows, in the order of the file. Raises SchoolError if a row has no reference answer."""
        for number, (problem, _, no_answer) in enumerate(self.rows, 1):
            if not problem.reference:
                raise SchoolError(
                    f"task {self.name} has no answers to grade: row {number} {no_answer}; use the replies of the file "
                    "with the recipe `sft` (`--demos` shows the replies); to grade completions, name the column of the "
                    "answer (`?answer=KEY`), or write a reward function (`python:FILE.py?data=PATH`)"
                )
        return [problem for problem, *_ in self.rows]

    def warm_up(self) -> None:
        """Import math-verify. The import of math-verify takes half a second."""
        if not self.in_process:
            load_math_verify()

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Give reward 1 if the final answer equals the reference or one of the aliases, else reward 0."""
        return self.grading.grade(problem, completion)

    def normalized_answer(self, completion: Completion) -> Hashable | None:
        """Return the final answer of a completion. The answer is found in the same way as in the method `grade`."""
        return normalized_answer(completion, self.grading.extraction)

    @cached_property
    def _train_demonstrations(self) -> list[Demonstration]:
        return [
            demonstration for problem, demonstration, _ in self.rows if demonstration and not self.is_held_out(problem)
        ]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Return demonstrations of the train split. Each epoch has a new order."""
        if not self._train_demonstrations:
            raise SchoolError(
                f"task {self.name} has no demonstrations: write the solution before `####` in `answer` (as in GSM8K), "
                "give `problem` and `solution` (as in MATH) or `messages` (a chat), or name the column to imitate "
                "(`?completion=KEY`)"
            )
        return shuffled_epochs(self._train_demonstrations, self.seed, "worked", step, count)


def demonstration_to_row(demonstration: Demonstration) -> dict[str, Any]:
    """Return a demonstration as a row of a file. `demonstration_from_row` restores the demonstration."""
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
        **({"aliases": list(problem.aliases)} if problem.aliases else {}),
    }


def demonstration_from_row(row: Mapping[str, Any]) -> Demonstration:
    """Return the demonstration of a row that `demonstration_to_row` made."""
    messages = tuple(Message(**message) for message in row["messages"])
    aliases = tuple(row.get("aliases", ()))
    problem = Problem(row["id"], messages, row["reference"], row["family"], aliases=aliases)
    return Demonstration(problem, row["thought"], row["response"], row["style"])
