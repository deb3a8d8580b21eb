"""`school task` and `school tokens`: look at problems and at tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from schoolhouse.cli.options import parse_options, progress_bar
from schoolhouse.config import BaseConfig
from schoolhouse.types import Problem, SchoolError


class Tokens(BaseConfig):
    text: str
    """What to cut."""
    model: Path
    """Folder of a model or of a run (the tokenizer is all that is read)."""
    markup: bool = False
    """Read <think> and its like as markup, not as text."""


def tokens(words: Sequence[str]) -> None:
    """school tokens TEXT --model MODEL"""
    c = parse_options(Tokens, words, "school tokens TEXT --model MODEL", ("text",))
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
    """Print held-out problems instead of practice."""
    demos: bool = False
    """Print worked examples instead of practice."""
    check: bool = False
    """Judge every reference answer (must be right) and what must not pass for one: a perturbed, an empty, a cut one."""
    limit: int | None = Field(None, gt=0)
    """Check this many problems instead of all."""
    seed: int = 0


def task(words: Sequence[str]) -> None:
    """school task NAME [--show N] [--check]"""
    c = parse_options(Task, words, "school task NAME [--show N] [--eval] [--demos] [--check [--limit N]]", ("name",))
    if c is None:
        return
    from schoolhouse.tasks.audit import audit_task
    from schoolhouse.tasks.registry import open_task

    opened = open_task(c.name, c.seed)
    if c.check:
        with progress_bar(f"checking {c.name}") as tell:
            audit_task = audit_task(opened, c.limit, tell)
        print(audit_task)
        if not audit_task.passed:
            raise SchoolError(f"{c.name} misjudges {len(audit_task.failures):,} of its own answers: do not train on it")
    elif c.demos:
        for lesson in opened.demonstrations(0, c.show):
            _print_problem(lesson.problem, f"by hand: {lesson.style}" if lesson.style else "")
            print(f"assistant: <think>{lesson.thought or ''}</think>{lesson.answer}\n")
    else:
        for problem in opened.eval_problems(c.show) if c.eval else opened.train_problems(0, c.show):
            _print_problem(problem)
            print(f"reference: {problem.reference}\n")


def _print_problem(problem: Problem, note: str = "") -> None:
    print(f"[{problem.id}] {note}".rstrip())
    for message in problem.messages:
        print(f"{message.role}: {message.content}")
