"""`school solve`: one problem, typed, with as much thinking as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path

from pydantic import Field

from schoolhouse.commands import options
from schoolhouse.config import Frozen
from schoolhouse.durable import write_whole
from schoolhouse.types import Key, SchoolError

USAGE = 'school solve MODEL "problem" [--task TASK] [--search tot] [--show] [--page FILE.html]'


class Solve(Frozen):
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
    c = options(Solve, words, USAGE, ("model", "problem"))
    if c is None:
        return
    from rich.console import Console

    from schoolhouse.policy.policy import Policy
    from schoolhouse.search.show import draw, page
    from schoolhouse.search.solve import TREES, parse
    from schoolhouse.search.solve import solve as search
    from schoolhouse.tasks.task import Task, open_task
    from schoolhouse.tasks.verify import extract

    how, task = parse(c.search, c.budget), open_task(c.task, c.seed) if c.task else Task()
    if c.page and how.kind not in TREES:
        raise SchoolError(f"`{how.kind}` grows no tree: choose --search tot, dfs, beam or dvts for a page")
    if c.page:
        c.page.parent.mkdir(parents=True, exist_ok=True)
    policy = Policy.load(c.model)
    (found,) = search(policy, task, [policy.conversation.begin(task.pose(c.problem), Key(c.seed, "solve"))], how)
    reply = policy.conversation.read(found.rollout) if found.rollout else None
    answer = (extract(reply)[0] or reply.answer.strip()) if reply else ""
    if c.page:  # before anything is shown: a reader may close the pipe
        write_whole(c.page, page(found, answer))
    console = Console(highlight=False)
    if c.show and found.tree:
        console.print(draw(found))
    if c.show:
        for text, count in found.votes:
            console.print(f"{count:4d} x {text}", markup=False)
    console.print(answer or "no answer", style="bold", markup=False)
    console.print(f"{found.tokens:,} tokens; {found.end}", style="dim", markup=False)
    if c.page:
        console.print(f"the tree is in {c.page}", style="dim", markup=False)
