"""The Task class: problems, and grades for completions. A task does not know the policy.

A verdict is computed in process where `in_process` is True, else in a worker process with a timeout (worker_pool.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import clear_frames

from schoolhouse.tasks.answer_match import perturb_answer
from schoolhouse.tasks.user_file import definition, describe_error
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

ProgressFn = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

Case = tuple[Problem, Completion]
"""A completion to grade, with its problem."""

AUDIT_SAMPLE = 1_000  # training problems that `audit_task` grades where a task generates its problems


class Task:
    """Base class of all tasks. A task of your own defines `train_problems`, `eval_problems` and `grade`.

    name        shown in reports
    in_process  True: `grade` is quick and harmless, and is called in process; else only in worker processes
    spec        (spec, seed) passed to `open_task`, from which worker processes open the task again
    files       files the task was read from: a run refuses to resume with other contents
    notes       what a user has to know about the data: rows that are left out, for instance
    delimiter   ends a step of a thought

    All other methods are optional. A task whose steps can be checked defines `step_labels`. A task for tree search
    with prompts defines `propose_prompt`, `value_prompt` or `vote_prompt`, and the parser of each.
    """

    name: str = ""
    in_process: bool = False
    spec: tuple[str, int] | None = None
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    delimiter: str = "\n"

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """Training problems: a pure function of the task's seed and `step`."""
        raise self._missing("training problems", "train_problems(step, count)")

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Held-out problems, always the same, none of which is ever a training problem. None: all of them."""
        raise self._missing("eval problems", "eval_problems(count=None)")

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Grade a completion. Only `completion.answer`, the text behind the thought, should count."""
        raise self._missing("grades", "grade(problem, completion)")

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Demonstrations for supervised fine-tuning: a pure function of the task's seed and `step`."""
        raise self._missing("demonstrations", "demonstrations(step, count)")

    def pretraining_text(self, step: int, count: int) -> list[str]:
        """Documents for pretraining: a pure function of the task's seed and `step`."""
        raise self._missing("pretraining text", "pretraining_text(step, count)")

    def audit_problems(self, limit: int | None = None) -> list[Problem]:
        """Problems that `audit_task` grades: eval and a thousand training problems; all of them for a dataset."""
        return [*self.eval_problems(limit), *self.train_problems(0, AUDIT_SAMPLE)][:limit]

    def wrong_answer(self, problem: Problem) -> str:
        """A wrong final answer of the same kind as the reference, for `audit_task`."""
        return perturb_answer(problem.reference)

    def make_problem(self, text: str) -> Problem:
        """A problem from text that a user typed. It has no reference."""
        return Problem("typed", (Message("user", text),), "", "typed", self.name)

    def step_labels(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """1 for each correct step, 0 for a neutral one, -1 for a wrong step and all that follow it."""
        raise SchoolError(f"task {self.name} cannot check single steps: label them by continuations (labels: soft)")

    def propose_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The prompt for possible next thoughts; None where no thought can follow."""
        raise SchoolError(f"task {self.name} has no propose prompt: use thoughts=sample")

    def parse_proposals(self, text: str) -> list[str]:
        """The thoughts in an answer to `propose_prompt`."""
        raise NotImplementedError

    def value_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The prompt for the value of some thoughts; None where there is nothing to evaluate."""
        raise SchoolError(f"task {self.name} has no value prompt: set values to the folder of a reward model")

    def parse_value(self, text: str) -> float | None:
        """The value in an answer to `value_prompt`; None where it cannot be read."""
        raise NotImplementedError

    def vote_prompt(self, problem: Problem, candidates: Sequence[Sequence[str]]) -> Problem | None:
        """The prompt for the best of several lists of thoughts; None where there is nothing to compare."""
        raise SchoolError(f"task {self.name} has no vote prompt: use values=prompt, or the folder of a reward model")

    def parse_vote(self, text: str) -> int | None:
        """The index, from 0, of the candidate in an answer to `vote_prompt`; None where it cannot be read."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Called once in each worker process before any timeout: the place for slow imports."""

    def _missing(self, what: str, method: str) -> SchoolError:
        cls = type(self)
        return SchoolError(f"task {self.name} has no {what}: {definition(cls)}: define {cls.__name__}.{method}")


def grade_one(task: Task, problem: Problem, completion: Completion) -> Verdict:
    """One verdict in this process. An exception is never a zero: it becomes a verdict without a reward.

    Its reason names the file and line of the user's code that raised.
    """
    try:
        verdict = task.grade(problem, completion)
    except SchoolError as error:
        return Verdict(None, str(error))
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError):
            clear_frames(error.__traceback__)  # frees what the verifier allocated
        return Verdict(None, describe_error(error))
    if not isinstance(verdict, Verdict):
        place, kind = definition(type(task).grade), type(verdict).__name__
        return Verdict(None, f"{place}: grade() returned a {kind}; return a Verdict, such as Verdict(1.0)")
    return verdict
