"""The base class of tasks. A task gives problems and grades completions. The code of a task never uses the policy (the
model that is trained).

If `in_process` is True, the task grades in the main process. If `in_process` is False, the task grades in worker
processes with a timeout (worker_pool.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from traceback import clear_frames
from typing import Any, Literal

from schoolhouse.tasks.answers.extraction import normalized_answer
from schoolhouse.tasks.answers.perturb import perturb_answer
from schoolhouse.tasks.async_calls import run_async
from schoolhouse.tasks.user_file import definition, describe_error, short_trace
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

ProgressFn = Callable[[int, int], None]
"""A function that is called with the numbers (done, total) while work is in progress."""

Case = tuple[Problem, Completion]
"""A completion to grade, with its problem."""

Batch = Literal["one", "split", "whole", "auto"]
"""How many completions one call of a verifier gets: one (`one`), a part of the step's completions for each worker
(`split`), or all completions of the step (`whole`, `auto`). If a call fails with `split` or `auto`, its completions are
graded one at a time. If a call fails with `whole`, its completions get no reward."""

TIMEOUT = 5.0
"""The default time limit for one completion, in seconds."""

AUDIT_SAMPLE = 1_000  # training problems that `audit_task` grades where a task generates its problems


class Task:
    """The base class of all tasks. Your own task must define `train_problems`, `eval_problems` and `grade`.

    `name` is the name of the task in reports.
    `in_process` is True if `grade` is fast and safe, so that it can run in the main process. If `in_process` is False,
    `grade` runs only in worker processes.
    `spec` has the two arguments of `open_task`: the name of the task with its options, and the seed. Worker processes
    open the task again with these arguments. `files` has the files that the task was read from. If one of the files has
    changed, a run refuses to resume. `notes` describe the data for the user: for instance, how many rows are left out.
    `delimiter` is the text that ends each step of a thought. `batch` decides how many completions a call of the
    verifier gets. If `batch` is not `one`, the workers call `grade_batch`. `time_limit` is the number of seconds for
    one completion; workers set it from `rewards.timeout`.

    If `grade` is an `async def`, the calls of `grade` run at the same time. All methods except `train_problems`,
    `eval_problems` and `grade` are optional. Define `step_labels` if each step of
    a thought can be checked. For tree search with prompts, define `propose_prompt`, `value_prompt` or `vote_prompt`,
    and the parser for each prompt that you define.
    """

    name: str = ""
    in_process: bool = False
    spec: tuple[str, int] | None = None
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    delimiter: str = "\n"
    batch: Batch = "one"
    time_limit: float = TIMEOUT

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """Return `count` training problems. The problems must depend only on the task's seed, `step` and `count`."""
        raise self._missing(f"task {self.name} has no training problems", "train_problems(step, count)")

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Return up to `count` held-out problems, or all of them if `count` is None.

        The held-out problems must always be the same, and none of them may be a training problem.
        """
        raise self._missing(f"task {self.name} has no eval problems", "eval_problems(count=None)")

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Grade a completion. The verdict should depend only on `completion.answer`, the text after the thought."""
        raise self._missing(f"task {self.name} cannot grade completions", "grade(problem, completion)")

    def grade_batch(self, cases: Sequence[Case]) -> Sequence[Verdict]:
        """Grade several completions in one call. Returns one verdict for each case, in the same order.

        Workers call this method if `batch` is not `one`.
        """
        return [self.grade(problem, completion) for problem, completion in cases]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Return `count` demonstrations for supervised fine-tuning.

        The demonstrations must depend only on the task's seed, `step` and `count`.
        """
        raise self._missing(f"task {self.name} has no demonstrations", "demonstrations(step, count)")

    def pretraining_text(self, step: int, count: int) -> list[str]:
        """Return `count` documents for pretraining.

        The documents must depend only on the task's seed, `step` and `count`.
        """
        raise self._missing(f"task {self.name} has no pretraining text", "pretraining_text(step, count)")

    def audit_problems(self, limit: int | None = None) -> list[Problem]:
        """Return the problems that `audit_task` grades: the eval problems and a thousand training problems.

        For a task with a fixed dataset, `audit_task` grades all problems.
        """
        return [*self.eval_problems(limit), *self.train_problems(0, AUDIT_SAMPLE)][:limit]

    def wrong_answer(self, problem: Problem) -> str:
        """Return a wrong final answer that looks like the reference. `audit_task` checks that the verifier rejects this
        answer."""
        return perturb_answer(problem.reference)

    def normalized_answer(self, completion: Completion) -> Hashable | None:
        """Return the final answer in a normal form, so that maj@k can count equal answers. None: no final answer."""
        return normalized_answer(completion)

    def make_problem(self, text: str) -> Problem:
        """Make a problem from a text that a user typed. The problem has no reference answer."""
        return Problem("typed", (Message("user", text),), "", "typed", self.name)

    def step_labels(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """Label each step of a solution.

        A correct step gets 1, and a neutral step gets 0. A wrong step and all steps after it get -1.
        """
        raise SchoolError(
            f"task {self.name} cannot check single steps; set `labels` to soft, so that sampled continuations give the "
            "labels"
        )

    def propose_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """Return the prompt that asks for possible next thoughts, or None if no thought can follow."""
        raise SchoolError(f"task {self.name} has no prompt that asks for next thoughts; set `thoughts` to sample")

    def parse_proposals(self, text: str) -> list[str]:
        """Extract the thoughts from the model's answer to `propose_prompt`."""
        raise NotImplementedError

    def value_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """Return the prompt that asks for the value of the given thoughts, or None if they cannot be evaluated."""
        raise SchoolError(
            f"task {self.name} has no prompt that asks for the value of a thought; set `values` to the folder of a "
            "reward model"
        )

    def parse_value(self, text: str) -> float | None:
        """Extract the value from the model's answer to `value_prompt`. Returns None if the answer has no value."""
        raise NotImplementedError

    def vote_prompt(self, problem: Problem, candidates: Sequence[Sequence[str]]) -> Problem | None:
        """Return the prompt that asks which list of thoughts is the best, or None if there is nothing to compare."""
        raise SchoolError(
            f"task {self.name} has no prompt that asks which thought is best; set `values` to prompt, or to the folder "
            "of a reward model"
        )

    def parse_vote(self, text: str) -> int | None:
        """Extract the index (from 0) of the best candidate from the model's answer to `vote_prompt`.

        Returns None if the answer does not name a candidate.
        """
        raise NotImplementedError

    def warm_up(self) -> None:
        """Prepare a worker process. The method `warm_up` is called once per worker, before any timeout starts.

        Put slow imports into the method `warm_up`.
        """

    def _missing(self, problem: str, method: str) -> SchoolError:
        cls = type(self)
        return SchoolError(f"{problem}: {definition(cls)}: add the method {method} to the class {cls.__name__}")


def grade_one(task: Task, problem: Problem, completion: Completion) -> Verdict:
    """Grade one completion in this process.

    If the verifier raises an exception, the reward is None, not 0, and the reason of the verdict names the file and the
    line of the user's code that raised the exception.
    """
    return grade_with_trace(task, (problem, completion))[0]


def grade_with_trace(task: Task, case: Case) -> tuple[Verdict, str]:
    """Grade one completion in this process. Returns the verdict, and the traceback of an exception or ""."""
    if grades_together(task):
        return run_async(grade_async(task, case))
    try:
        return _checked(task, task.grade(*case)), ""
    except (Exception, SystemExit) as error:
        return failed(error)


def grade_in_process(task: Task, cases: Sequence[Case]) -> Iterator[tuple[Verdict, str]]:
    """Yield the verdict of each case, and the traceback of an exception or "". The attribute `batch` decides how many
    cases one call gets."""
    if task.batch != "one" and cases and not grades_together(task):
        try:
            yield from ((verdict, "") for verdict in check_batch(task, cases, task.grade_batch(cases)))
            return
        except (Exception, SystemExit) as error:
            if task.batch == "whole" or isinstance(error, SchoolError) or len(cases) == 1:
                yield from [failed(error)] * len(cases)
                return
        for case in cases:
            yield from grade_in_process(task, [case])
        return
    for case in cases:
        yield grade_with_trace(task, case)


async def grade_async(task: Task, case: Case) -> tuple[Verdict, str]:
    """Await the verdict of one completion. Returns the verdict, and the traceback of an exception or ""."""
    try:
        verdict: Any = task.grade(*case)
        return _checked(task, await verdict if inspect.isawaitable(verdict) else verdict), ""
    except (Exception, SystemExit) as error:
        return failed(error)


def grades_together(task: Task) -> bool:
    """Return True if `grade` is an `async def`, so that its calls run at the same time."""
    return inspect.iscoroutinefunction(task.grade)


def failed(error: BaseException) -> tuple[Verdict, str]:
    """Return the verdict for an exception of a verifier, and the traceback of the exception. The verdict has a reason
    but no reward."""
    if isinstance(error, MemoryError):
        clear_frames(error.__traceback__)  # frees the memory of the verifier
    if isinstance(error, SchoolError):
        return Verdict(None, str(error)), ""
    return Verdict(None, describe_error(error)), short_trace(error)


def check_batch(task: Task, cases: Sequence[Case], verdicts: Any) -> list[Verdict]:
    """Return the result of `grade_batch` as a list. Raises SchoolError if the list does not have one verdict for each
    case."""
    place = definition(type(task).grade_batch)
    if not isinstance(verdicts, (list, tuple)):
        raise SchoolError(
            f"{place}: grade_batch() returned a {type(verdicts).__name__}; return a list with one Verdict per case"
        )
    if len(verdicts) != len(cases):
        raise SchoolError(
            f"{place}: grade_batch() returned {len(verdicts)} verdicts for {len(cases)} cases; return one verdict for "
            "each case"
        )
    return [_checked(task, verdict, "grade_batch") for verdict in verdicts]


def _checked(task: Task, verdict: Any, method: str = "grade") -> Verdict:
    if isinstance(verdict, Verdict):
        return verdict
    place, kind = definition(getattr(type(task), method)), type(verdict).__name__
    return Verdict(None, f"{place}: {method}() returned a {kind}; return a Verdict, such as Verdict(1.0)")
