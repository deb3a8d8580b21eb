"""What a task is, opening one by name, and judging what a policy said.

A task gives problems and judges replies; it knows no policy. A verdict comes either from our own exact comparison, in
process (`trusted`), or from a worker process with a hard wall clock (pool.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from schoolhouse.config import nearest, read_options
from schoolhouse.tasks.verify import perturb
from schoolhouse.types import Demonstration, Group, Message, Problem, Reply, Rollout, SchoolError, Verdict

if TYPE_CHECKING:
    from schoolhouse.tasks.pool import Pool

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""

Case = tuple[Problem, Reply]

KINDS = ("school", "jsonl", "game24", "gym", "python")
SHOWN_FAILURES = 10
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
    trusted: bool = False
    origin: tuple[str, int] | None = None
    files: tuple[Path, ...] = ()
    delimiter: str = "\n"

    def draw(self, step: int, count: int) -> list[Problem]:
        """Practice problems: a pure function of the task's seed and `step`."""
        raise SchoolError(f"task {self.name} has no practice problems: its class does not define draw(step, count)")

    def exam(self, count: int | None = None) -> list[Problem]:
        """Held-out problems, always the same, none of which `draw` ever gives. None: all of them."""
        raise SchoolError(f"task {self.name} has no exam: its class does not define exam(count)")

    def verdict(self, problem: Problem, reply: Reply) -> Verdict:
        """Judge one reply, by what follows the thinking only."""
        raise SchoolError(f"task {self.name} judges nothing: its class does not define verdict(problem, reply)")

    def worked(self, step: int, count: int) -> list[Demonstration]:
        """Worked examples for supervised fine-tuning."""
        raise SchoolError(f"task {self.name} has no worked examples")

    def exposition(self, step: int, count: int) -> list[str]:
        """Documents for pretraining."""
        raise SchoolError(f"task {self.name} has no exposition to pretrain on")

    def problems(self, limit: int | None = None) -> list[Problem]:
        """What `validate` judges: the exam and a thousand practice problems; a task with an end gives all it has."""
        return [*self.exam(limit), *self.draw(0, SAMPLE)][:limit]

    def wrong(self, problem: Problem) -> str:
        """A wrong final answer of the same kind as the right one, for `validate`."""
        return perturb(problem.reference)

    def pose(self, text: str) -> Problem:
        """A problem that somebody typed. Nobody knows its answer."""
        return Problem("typed", (Message("user", text),), "", "typed", self.name)

    def rate(self, problem: Problem, thoughts: Sequence[str]) -> list[int]:
        """1 for each step that is right, 0 for one that is neither, -1 for a wrong one and all that follow it."""
        raise SchoolError(f"task {self.name} cannot check single steps: label them by continuations (labels: soft)")

    def ask_next(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The question which thoughts may come next; None where there is nothing to ask."""
        raise SchoolError(f"task {self.name} does not ask for next thoughts: let them be sampled (thoughts: sample)")

    def read_next(self, text: str) -> list[str]:
        """The thoughts that an answer to `ask_next` lists."""
        raise NotImplementedError

    def ask_value(self, problem: Problem, thoughts: Sequence[str]) -> Problem | None:
        """The question what some thoughts are worth; None where there is nothing to ask."""
        raise SchoolError(f"task {self.name} does not ask what thoughts are worth: use a judge, such as a reward model")

    def read_value(self, text: str) -> float | None:
        """What an answer to `ask_value` says; None where it cannot be read."""
        raise NotImplementedError

    def ask_vote(self, problem: Problem, ways: Sequence[Sequence[str]]) -> Problem | None:
        """The question which of several ways to think leads furthest; None where there is nothing to ask."""
        raise SchoolError(f"task {self.name} does not ask which thought is best: values=ask, or a judge")

    def read_vote(self, text: str) -> int | None:
        """The number, from 0, of the way that an answer to `ask_vote` chooses; None where it cannot be read."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Called once in each worker process before the clock runs: the place for slow imports."""

    def validate(self, limit: int | None = None) -> Audit:
        """Judge the task's own references and what must not pass for them; see `check`."""
        return check(self, limit)

    @cached_property
    def pool(self) -> Pool:
        """The worker processes that judge for this task. They start with the first verdict."""
        from schoolhouse.tasks.pool import Pool

        return Pool(self)

    @property
    def pace(self) -> dict[str, float]:
        """Seconds that the last verdicts of the worker processes took, in the mean and the slowest; {} without them."""
        seconds = self.pool.seconds if "pool" in self.__dict__ else []
        return {"mean": fmean(seconds), "slowest": max(seconds)} if seconds else {}


# ---- opening


def open_task(spec: str, seed: int = 0) -> Task:
    """The task that `KIND[:REST][?OPTION=VALUE&...]` names.

    "school", "school:addition+chain", "school:addition?digits=4" · "gym:chain_sum?size=500" · "jsonl:PATH" ·
    "game24:PATH.csv" · "python:PATH.py", "python:PATH.py:name", "python:PATH.py:reward?data=PATH.jsonl".
    Raises SchoolError for an unknown kind, with the nearest; kinds check their own names and options.
    """
    body, _, query = spec.partition("?")
    kind, _, rest = body.partition(":")
    options = _options(spec, query)
    match kind:
        case "school":
            from schoolhouse.tasks.school import School

            task: Task = School.open(rest, seed, **options)
        case "jsonl":
            from schoolhouse.tasks.files import open_jsonl

            task = open_jsonl(rest, seed, **options)
        case "game24":
            from schoolhouse.tasks.game24 import Game24

            task = Game24.open(rest, seed, **options)
        case "gym":
            from schoolhouse.tasks.gym import open_gym

            task = open_gym(rest, seed, **options)
        case "python":
            from schoolhouse.tasks.functions import open_python

            task = open_python(rest, seed, **options)
        case _:
            raise SchoolError(f"unknown task `{spec}`{_advice(body)}")
    task.__dict__["origin"] = (spec, seed)  # a task may be a frozen dataclass
    named = (rest, rest.partition(".py:")[0] + ".py", options.get("data"))
    if kind in ("jsonl", "game24", "python"):
        task.__dict__["files"] = tuple(Path(name) for name in named if name and Path(name).is_file())
    if not task.name:
        task.__dict__["name"] = spec
    return task


def _options(spec: str, query: str) -> dict[str, str]:
    options = read_options(f"task `{spec}`", query)
    for name in ("seed", "families", "rest"):
        if name in options:
            raise SchoolError(f"task `{spec}`: `{name}` cannot be set after the `?`")
    return options


def _advice(body: str) -> str:
    """What somebody who wrote `body` may have meant."""
    kind, colon, _ = body.partition(":")
    if not colon and body.endswith((".jsonl", ".json")):
        return f"; did you mean `jsonl:{body}`?"
    if not colon and body.endswith(".py"):
        return f"; did you mean `python:{body}`?"
    from schoolhouse.tasks.school import FAMILIES

    if kind in FAMILIES:
        return f"; did you mean `school:{body}`?"
    return nearest(kind, [*KINDS, *(f"school:{family}" for family in FAMILIES)])


# ---- judging


def judge(
    rollouts: Sequence[Rollout], task: Task, read: Callable[[Rollout], Reply], pool: Pool | None = None
) -> list[Group]:
    """Verdicts on rollouts, in order; consecutive rollouts of the same step and problem are one group.

    read  what the policy said last, from a rollout (`Conversation.read`)
    pool  worker processes to use instead of the task's own
    A verifier that raises, dies or runs over its clock gives a verdict without a score, and the reason.
    """
    verdicts = judge_all([(rollout.problem, read(rollout)) for rollout in rollouts], task, pool)
    groups = []
    judged = zip(rollouts, verdicts, strict=True)
    for _, members in groupby(judged, key=lambda m: (m[0].key.step, m[0].key.problem, m[0].problem.id)):
        same, given = zip(*members, strict=True)
        groups.append(Group(same[0].problem, same, given))
    return groups


def judge_all(
    cases: Sequence[Case], task: Task, pool: Pool | None = None, progress: Progress | None = None
) -> list[Verdict]:
    """One verdict for each (problem, reply), in order: in process for a trusted task, else by worker processes."""
    if pool is None and not task.trusted:
        pool = task.pool
    if pool is not None:
        return pool.verdicts(cases, progress)
    verdicts = []
    for problem, reply in cases:
        verdicts.append(ask(task, problem, reply))
        if progress:
            progress(len(verdicts), len(cases))
    return verdicts


def ask(task: Task, problem: Problem, reply: Reply) -> Verdict:
    """One verdict here and now. An exception in a verifier is never a zero: it becomes a verdict without a score."""
    try:
        verdict = task.verdict(problem, reply)
    except (Exception, SystemExit) as error:
        return Verdict(None, f"the verifier raised {type(error).__name__}: {error}")
    if not isinstance(verdict, Verdict):
        return Verdict(None, f"verdict() returned a {type(verdict).__name__}; it must return a Verdict")
    return verdict


# ---- checking a task against itself


@dataclass(frozen=True)
class Audit:
    """How a task judges its own references, and answers that must not pass for them.

    judged           problems
    references_right references that scored 1
    perturbed_wrong  references changed a little,
    empty_wrong      empty replies,
    truncated_wrong  references cut off inside their marker, and
    garbage_wrong    marked nonsense that got a score, and less than 1
    failures         (problem id, what went wrong)
    seconds          wall clock
    """

    judged: int
    references_right: int
    perturbed_wrong: int
    empty_wrong: int
    truncated_wrong: int
    garbage_wrong: int
    failures: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Every reference was right and nothing else was."""
        return not self.failures

    def __str__(self) -> str:
        lines = [f"judged {self.judged:,} problems in {self.seconds:.1f} s"]
        for count, what in (
            (self.references_right, "references right"),
            (self.perturbed_wrong, "perturbed answers wrong"),
            (self.empty_wrong, "empty replies wrong"),
            (self.truncated_wrong, "truncated replies wrong"),
            (self.garbage_wrong, "nonsense answers wrong"),
        ):
            lines.append(f"  {count:,} of {self.judged:,} {what}")
        lines += [f"  {name}: {what}" for name, what in self.failures[:SHOWN_FAILURES]]
        if len(self.failures) > SHOWN_FAILURES:
            lines.append(f"  and {len(self.failures) - SHOWN_FAILURES:,} more failures")
        return "\n".join(lines)


_REFERENCE, _PERTURBED, _EMPTY, _TRUNCATED, _GARBAGE = "reference", "perturbed", "empty", "truncated", "nonsense"


def check(task: Task, limit: int | None = None, progress: Progress | None = None) -> Audit:
    """Judge each problem's reference, which must score 1, and four replies that must score less.

    `limit` bounds the problems (None: all of a task with an end). Raises SchoolError for a task without problems.
    """
    started = time.monotonic()
    problems = task.problems(limit)
    if not problems:
        raise SchoolError(f"task {task.name} has no problems to check")
    kinds, cases = [], []
    for problem in problems:
        for kind, reply in _trials(task, problem):
            kinds.append(kind)
            cases.append((problem, reply))
    passed = dict.fromkeys((_REFERENCE, _PERTURBED, _EMPTY, _TRUNCATED, _GARBAGE), 0)
    failures = []
    for kind, (problem, reply), verdict in zip(kinds, cases, judge_all(cases, task, None, progress), strict=True):
        right = verdict.score == 1.0
        if verdict.score is not None and right == (kind == _REFERENCE):
            passed[kind] += 1
            continue
        result = "could not be judged" if verdict.score is None else f"scored {verdict.score:g}"
        reason = f": {verdict.reason}" if verdict.reason else ""
        failures.append((problem.id, f"{kind} {reply.answer!r} {result}{reason}"))
    return Audit(len(problems), *passed.values(), tuple(failures), time.monotonic() - started)


def _trials(task: Task, problem: Problem) -> Iterable[tuple[str, Reply]]:
    marked = f"\\boxed{{{problem.reference}}}"
    yield _REFERENCE, Reply(None, marked)
    yield _PERTURBED, Reply(None, f"\\boxed{{{task.wrong(problem)}}}")
    yield _EMPTY, Reply(None, "")
    yield _TRUNCATED, Reply(None, marked[:-1], complete=False)
    yield _GARBAGE, Reply(None, "\\boxed{zzz}")
