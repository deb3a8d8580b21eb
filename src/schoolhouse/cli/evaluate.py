"""`school evaluate` measures the accuracy of a model on a task. `school solve` solves one problem with a search."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

from pydantic import Field

from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.cli.options import parse_options
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.runs.atomic_io import atomic_write, to_json
from schoolhouse.types import Key, SchoolError


class Evaluate(ChatConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    task: str = "school"
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    problems: int | None = Field(200, gt=0)
    """Held-out problems; none: all of them."""
    samples: int = Field(8, gt=0)
    """Completions for each problem."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Limit of the tokens of a completion, thinking included; none: the context length of the model, at most 512."""
    temperature: float = Field(1.0, ge=0)
    seed: int = 0
    rewards: WorkerSettings = WorkerSettings()
    search: str = ""
    """Search method (docs/search.md), with options as in "vote?samples=32" or "tot?beam_width=1&thoughts=propose"."""
    budget: float = Field(inf, gt=0)
    """Limit of the tokens that a search samples for one problem, including those of its value functions."""
    save: Path | None = None
    """File for the results of each problem, as JSON."""


def evaluate(args: Sequence[str]) -> None:
    """Run the command `school evaluate MODEL --task TASK`."""
    c = parse_options(Evaluate, args, "school evaluate MODEL --task TASK", ("model",))
    if c is None:
        return
    from schoolhouse.eval.evaluate import evaluate as evaluate_policy
    from schoolhouse.policy.policy import Policy
    from schoolhouse.tasks.grading import open_graded_task

    task = open_graded_task(c.task, c.seed, c.rewards)
    policy = Policy.load(c.model, chat=c)
    saved: dict[str, object] = {}
    if c.save:
        c.save.parent.mkdir(parents=True, exist_ok=True)
    if c.search:
        from schoolhouse.search.solve import SearchGenerator, parse

        ignored = sorted(c.model_fields_set & {"samples", "temperature", "max_new_tokens"})
        if ignored:
            names = " and ".join(f"--{name}" for name in ignored)
            raise SchoolError(f"{names} cannot be used with --search: write the options in the form --search NAME?a=b")
        searcher = SearchGenerator(policy, task, parse(c.search, c.budget))
        search = searcher.search
        result = evaluate_policy(searcher, task, c.problems, 1, search.max_new_tokens, search.temperature, c.seed)
        print(result)
        print(searcher.summary())
        saved = searcher.to_json()
    else:
        result = evaluate_policy(policy, task, c.problems, c.samples, c.max_new_tokens, c.temperature, c.seed)
        print(result)
    if c.save:
        atomic_write(c.save, to_json({**result.to_json(records=True), **saved}, 2) + "\n")


class Solve(ChatConfig):
    model: Path
    """Folder of a model, or of a run: its newest checkpoint."""
    problem: str
    """Text of the problem."""
    task: str = ""
    """Task of the problem. The task defines the steps of a solution and the prompts of a tree search."""
    search: str = "vote?samples=16"
    """Search method (docs/search.md), with options as in "vote?samples=32" or "tot?beam_width=1&thoughts=propose"."""
    budget: float = Field(inf, gt=0)
    """Limit of the tokens that the search samples, including those of its value functions."""
    show: bool = False
    """Print the tree of thoughts, or the votes."""
    page: Path | None = None
    """File for the tree as a web page (.html)."""
    seed: int = 0


def solve(args: Sequence[str]) -> None:
    """Run the command `school solve MODEL "problem" --search tot --show`."""
    usage = 'school solve MODEL "problem" [--task TASK] [--search tot] [--show] [--page FILE.html]'
    c = parse_options(Solve, args, usage, ("model", "problem"))
    if c is None:
        return
    from rich.console import Console

    from schoolhouse.policy.policy import Policy
    from schoolhouse.search.render import draw, html_page
    from schoolhouse.search.solve import TREE_KINDS, parse
    from schoolhouse.search.solve import solve as search
    from schoolhouse.tasks.answers.extraction import extract_answer
    from schoolhouse.tasks.base import Task
    from schoolhouse.tasks.registry import open_task

    settings, task = parse(c.search, c.budget), open_task(c.task, c.seed) if c.task else Task()
    if c.page and settings.kind not in TREE_KINDS:
        raise SchoolError(
            f"search `{settings.kind}` has no tree to show with --page: choose --search tot, dfs, beam or dvts"
        )
    if c.page:
        c.page.parent.mkdir(parents=True, exist_ok=True)
    policy = Policy.load(c.model, chat=c)
    prompt = policy.conversation.prompt_rollout(task.make_problem(c.problem), Key(c.seed, "solve"))
    (result,) = search(policy, task, [prompt], settings)
    completion = policy.conversation.parse_completion(result.rollout) if result.rollout else None
    answer = (extract_answer(completion)[0] or completion.answer.strip()) if completion else ""
    if c.page:  # written before the first print, because the reader of a pipe may close it
        atomic_write(c.page, html_page(result, answer))
    console = Console(highlight=False)
    if c.show and result.tree:
        console.print(draw(result))
    if c.show:
        for text, count in result.votes:
            console.print(f"{count:4d} x {text}", markup=False)
    console.print(answer or "no answer", style="bold", markup=False)
    console.print(f"{result.tokens:,} tokens; {result.stop_reason}", style="dim", markup=False)
    if c.page:
        console.print(f"the tree is in {c.page}", style="dim", markup=False)
