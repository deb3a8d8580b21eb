"""What a task is, opening one by name, and judging what a policy said.

A task gives problems and judges replies; it knows no policy. A verdict comes either from our own exact comparison, in
process (`trusted`), or from a worker process with a hard wall clock (pool.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schoolhouse.tasks.answer_match import perturb
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

if TYPE_CHECKING:
    pass


Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

Case = tuple[Problem, Completion]

SAMPLE = 1_000  # practice problems that `validate` looks at where a task has no end


class Task:
    """Base class of all tasks. A task of your own gives `draw`, `exam` and `verdict`; the rest has defaults.

    name     shown in reports
    trusted  True: `verdict` is quick, total and harmless, and is called in process; else only in a worker process
    origin   (spec, seed) that `open_task` was given, from which worker processes build the task anew
    files    what it was read from: a run refuses to go on with others
    delimiter  ends a step of a thought

    A task whose steps can be checked gives `rate`; one whose steps a model can be asked about gives `ask_next` and
    `ask_value`, and reads the answers.
    """

    name: str = ""
    in_process: bool = False
    spec: tuple[str, int] | None = None
    files: tuple[Path, ...] = ()
    delimiter: str = "\n"

    def train_problems(self, step: int, count: int) -> list[Problem]:
        """Practice problems: a pure function of the task's seed and `step`."""
        raise SchoolError(f"task {self.name} has no practice problems: its class does not define draw(step, count)")

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        """Held-out problems, always the same, none of which `draw` ever gives. None: all of them."""
        raise SchoolError(f"task {self.name} has no exam: its class does not define exam(count)")

    def grade(self, problem: Problem, reply: Completion) -> Verdict:
        """Judge one reply, by what follows the thinking only."""
        raise SchoolError(f"task {self.name} judges nothing: its class does not define verdict(problem, reply)")

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Worked examples for supervised fine-tuning."""
        raise SchoolError(f"task {self.name} has no worked examples")

    def pretraining_text(self, step: int, count: int) -> list[str]:
        """Documents for pretraining."""
        raise SchoolError(f"task {self.name} has no pretraining text")

    def problems(self, limit: int | None = None) -> list[Problem]:
        """What `validate` judges: the exam and a thousand practice problems; a task with an end gives all it has."""
        return [*self.eval_problems(limit), *self.train_problems(0, SAMPLE)][:limit]

    def wrong_answer(self, problem: Problem) -> str:
        """A wrong final answer of the same kind as the right one, for `validate`."""
        return perturb(problem.reference)

    def make_problem(self, text: str) -> Problem:
        """A problem that somebody typed. Nobody knows its answer."""
        return Problem("typed", (Message("user", text),), "", "typed", self.name)

    def step_labels(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """1 for each step that is right, 0 for one that is neither, -1 for a wrong one and all that follow it."""
        raise SchoolError(f"task {self.name} cannot check single steps: label them by continuations (labels: soft)")

    def propose_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The question which thoughts may come next; None where there is nothing to ask."""
        raise SchoolError(f"task {self.name} does not ask for next thoughts: let them be sampled (thoughts: sample)")

    def parse_proposals(self, text: str) -> list[str]:
        """The thoughts that an answer to `ask_next` lists."""
        raise NotImplementedError

    def value_prompt(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The question what some thoughts are worth; None where there is nothing to ask."""
        raise SchoolError(f"task {self.name} does not ask what thoughts are worth: use a judge, such as a reward model")

    def parse_value(self, text: str) -> float | None:
        """What an answer to `ask_value` says; None where it cannot be read."""
        raise NotImplementedError

    def vote_prompt(self, problem: Problem, ways: Sequence[Sequence[str]]) -> Problem | None:
        """The question which of several ways to think leads furthest; None where there is nothing to ask."""
        raise SchoolError(f"task {self.name} does not ask which thought is best: values=ask, or a judge")

    def parse_vote(self, text: str) -> int | None:
        """The number, from 0, of the way that an answer to `ask_vote` chooses; None where it cannot be read."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Called once in each worker process before the clock runs: the place for slow imports."""


def grade_one(task: Task, problem: Problem, reply: Completion) -> Verdict:
    """One verdict here and now. An exception in a verifier is never a zero: it becomes a verdict without a score."""
    try:
        verdict = task.grade(problem, reply)
    except (Exception, SystemExit) as error:
        return Verdict(None, f"the verifier raised {type(error).__name__}: {error}")
    if not isinstance(verdict, Verdict):
        return Verdict(None, f"verdict() returned a {type(verdict).__name__}; it must return a Verdict")
    return verdict
