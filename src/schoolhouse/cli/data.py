"""`school task` shows the problems of a task. `school tokens` shows how a text is split into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.cli.options import parse_options, progress_bar
from schoolhouse.config import BaseConfig
from schoolhouse.types import Problem, SchoolError


class Tokens(BaseConfig):
    text: str
    """Text to split."""
    model: Path
    """Folder of a model or of a run. Only the tokenizer is read."""
    markup: bool = False
    """Read <think> and similar tags as special tokens, not as text."""


def tokens(args: Sequence[str]) -> None:
    """Run the command `school tokens TEXT --model MODEL`."""
    c = parse_options(Tokens, args, "school tokens TEXT --model MODEL", ("text",))
    if c is None:
        return
    from rich.console import Console

    from schoolhouse.data.token_display import show_tokens
    from schoolhouse.data.tokenizer import Tokenizer

    Console(highlight=False).print(show_tokens(c.text, Tokenizer.load(c.model), c.markup))


class Task(BaseConfig):
    name: str
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    show: int = Field(3, gt=0)
    """How many problems to print."""
    eval: bool = False
    """Print held-out problems instead of training problems."""
    demos: bool = False
    """Print demonstrations instead of training problems."""
    check: bool = False
    """Grade every reference answer (it must pass) and wrong answers (they must fail: perturbed, empty, cut off)."""
    drop: Path | None = None
    """With --check: file for a list of bad rows (unreadable, or failed the check); use the list with ?drop=FILE."""
    limit: int | None = Field(None, gt=0)
    """Check this many problems instead of all."""
    seed: int = 0
    rewards: WorkerSettings = WorkerSettings()


def task(args: Sequence[str]) -> None:
    """Run the command `school task NAME [--show N] [--check]`."""
    c = parse_options(Task, args, "school task NAME [--show N] [--eval] [--demos] [--check [--limit N]]", ("name",))
    if c is None:
        return
    from schoolhouse.tasks.registry import open_task

    if c.drop and not c.check:
        raise SchoolError("--drop needs the option --check, which finds the rows for the list: add --check")
    if c.check:
        _check(c)
        return
    opened = open_task(c.name, c.seed)
    if c.demos:
        for demo in opened.demonstrations(0, c.show):
            _print_problem(demo.problem, f"style: {demo.style}" if demo.style else "")
            print(f"assistant: <think>{demo.thought or ''}</think>{demo.answer}\n")
    else:
        for problem in opened.eval_problems(c.show) if c.eval else opened.train_problems(0, c.show):
            _print_problem(problem)
            print(f"reference: {problem.reference}\n")


def _check(c: Task) -> None:
    from schoolhouse.tasks.audit import audit_task
    from schoolhouse.tasks.grading import open_graded_task
    from schoolhouse.tasks.jsonl import JsonLines

    spec, num_unreadable, num_failed = c.name, 0, 0
    if c.drop:
        from schoolhouse.cli.drop_list import list_failed, list_unreadable

        spec, num_unreadable = list_unreadable(c.name, c.drop)
    opened = open_graded_task(spec, c.seed, c.rewards)
    failures: Sequence[tuple[str, str]] = ()
    if isinstance(opened, JsonLines) and not opened.has_answers:
        print(f"read {len(opened.rows):,} rows with replies; the rows have no answers to grade")
    else:
        with progress_bar(f"checking {c.name}") as report:
            audit = audit_task(opened, c.limit, report)
        print(audit)
        failures = audit.failures
    if c.drop:
        num_failed = list_failed(c.name, c.drop, failures)
        print(f"listed in {c.drop}: {num_unreadable:,} rows that cannot be read, {num_failed:,} that fail the check")
        print(f"leave them out with: {spec}")
    elif failures:
        raise SchoolError(
            f"the verifier of task {c.name} gave a wrong grade to {len(failures):,} answers during this check: correct "
            "the verifier or the reference answers before you train on the task"
        )


def _print_problem(problem: Problem, note: str = "") -> None:
    print(f"[{problem.id}] {note}".rstrip())
    for message in problem.messages:
        print(f"{message.role}: {message.content}")
