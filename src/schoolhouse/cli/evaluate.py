"""`school evaluate`, `school solve`."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

from pydantic import Field

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.runs.atomic_io import atomic_write, to_json
from schoolhouse.types import Key, SchoolError


class Evaluate(BaseConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    task: str = "school"
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    problems: int | None = Field(200, gt=0)
    """Held-out problems to answer; none: all of them."""
    samples: int = Field(8, gt=0)
    """Answers to each problem."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Tokens an answer may take, thinking included; none: what the model can read, at most 512."""
    temperature: float = Field(1.0, ge=0)
    seed: int = 0
    search: str = ""
    """Think longer (docs/search.md), with options as in "vote?samples=32" or "tot?breadth=1&thoughts=propose"."""
    budget: float = Field(inf, gt=0)
    """Tokens a search may spend on one problem, its judges' included."""
    save: Path | None = None
    """File for the result problem by problem, as JSON."""


def evaluate(words: Sequence[str]) -> None:
    """school evaluate MODEL --task TASK"""
    c = parse_options(Evaluate, words, "school evaluate MODEL --task TASK", ("model",))
    if c is None:
        return
    from schoolhouse.eval.evaluate import evaluate as sit
    from schoolhouse.policy.policy import Policy
    from schoolhouse.tasks.registry import open_task

    task = open_task(c.task, c.seed)
    policy = Policy.load(c.model)
    saved: dict[str, object] = {}
    if c.save:
        c.save.parent.mkdir(parents=True, exist_ok=True)
    if c.search:
        from schoolhouse.search.solve import SearchGenerator, parse

        ours = sorted(c.model_fields_set & {"samples", "temperature", "max_new_tokens"})
        if ours:
            named = " and ".join(f"--{name}" for name in ours)
            raise SchoolError(f"a search has options of its own: instead of {named} write them behind `?` in --search")
        searcher = SearchGenerator(policy, task, parse(c.search, c.budget))
        result = sit(searcher, task, c.problems, 1, searcher.search.max_new_tokens, searcher.search.temperature, c.seed)
        print(result)
        print(searcher.summary())
        saved = searcher.to_json()
    else:
        result = sit(policy, task, c.problems, c.samples, c.max_new_tokens, c.temperature, c.seed)
        print(result)
    if c.save:
        atomic_write(c.save, to_json({**result.to_json(records=True), **saved}, 2) + "\n")


class Solve(BaseConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    problem: str
    """What is to be solved."""
    task: str = ""
    """The task it is of, which knows what a step is and what may be asked about one."""
    search: str = "vote?samples=16"
    """Any of docs/search.md, with options as in "vote?samples=32" or "tot?breadth=1&thoughts=propose"."""
    budget: float = Field(inf, gt=0)
    """Tokens it may spend, its judges' included."""
    show: bool = False
    """Print the tree of thoughts, or the votes."""
    page: Path | None = None
    """File for the tree as a page (.html)."""
    seed: int = 0


def solve(words: Sequence[str]) -> None:
    """school solve MODEL "problem" --search tot --show"""
    usage = 'school solve MODEL "problem" [--task TASK] [--search tot] [--show] [--page FILE.html]'
    c = parse_options(Solve, words, usage, ("model", "problem"))
    if c is None:
        return
    from rich.console import Console

    from schoolhouse.policy.policy import Policy
    from schoolhouse.search.render import draw, html_page
    from schoolhouse.search.solve import TREES, parse
    from schoolhouse.search.solve import solve as search
    from schoolhouse.tasks.answer_match import extract
    from schoolhouse.tasks.base import Task
    from schoolhouse.tasks.registry import open_task

    how, task = parse(c.search, c.budget), open_task(c.task, c.seed) if c.task else Task()
    if c.page and how.kind not in TREES:
        raise SchoolError(f"`{how.kind}` grows no tree: choose --search tot, dfs, beam or dvts for a page")
    if c.page:
        c.page.parent.mkdir(parents=True, exist_ok=True)
    policy = Policy.load(c.model)
    (found,) = search(
        policy, task, [policy.conversation.prompt_rollout(task.make_problem(c.problem), Key(c.seed, "solve"))], how
    )
    reply = policy.conversation.parse_completion(found.rollout) if found.rollout else None
    answer = (extract(reply)[0] or reply.answer.strip()) if reply else ""
    if c.page:  # before anything is shown: a reader may close the pipe
        atomic_write(c.page, html_page(found, answer))
    console = Console(highlight=False)
    if c.show and found.tree:
        console.print(draw(found))
    if c.show:
        for text, count in found.votes:
            console.print(f"{count:4d} x {text}", markup=False)
    console.print(answer or "no answer", style="bold", markup=False)
    console.print(f"{found.tokens:,} tokens; {found.stop_reason}", style="dim", markup=False)
    if c.page:
        console.print(f"the tree is in {c.page}", style="dim", markup=False)
