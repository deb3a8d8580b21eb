"""Arithmetic word problems of one or two steps in plain English (`word_problems`), for models that can already read.

The problems are made from templates. The option `templates=unseen` selects templates that the default never uses. An
evaluation with `templates=unseen` therefore shows whether a model learned more than the wording of the templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from schoolhouse.config import suggest
from schoolhouse.tasks.answer_match import answer_match
from schoolhouse.tasks.dataset_task import DatasetTask, shuffled_epochs
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError, Verdict

DATA_SEED = 0
"""The seed of the problems is fixed. A different seed of a run changes only the order of the problems."""

DEFAULT_SIZE = 4_000
REQUEST = "Put your final answer in \\boxed{}."
NAMES = "Anna Ben Carla David Emma Felix Grace Henry Iris Jack Karen Leo Maria Nora Oscar Paula Rosa Sam Tina Victor"
THINGS = "apples books coins marbles pencils stickers stamps shells cards flowers cookies balloons toys buttons pears"


class Template(NamedTuple):
    """A problem text with placeholders for names and numbers, and the steps of its solution.

    In a step, `r` is the result of the previous step. The numbers a, b and c are between 2 and 12. `more` is larger
    than a + b, and `product` is a * b.
    """

    text: str
    steps: tuple[str, ...]


TEMPLATES: Mapping[str, tuple[Template, ...]] = {
    "practised": (
        Template("{n} has {a} {t}. {m} gives {n} {b} more {t}. How many {t} does {n} have now?", ("a + b",)),
        Template("{n} has {more} {t} and gives {b} of them to {m}. How many {t} does {n} have left?", ("more - b",)),
        Template("{n} buys {a} boxes. There are {b} {t} in each box. How many {t} does {n} buy?", ("a * b",)),
        Template(
            "{n} shares {product} {t} equally among {a} friends. How many {t} does each friend get?", ("product / a",)
        ),
        Template("There are {a} {t} on the table and {b} {t} in a bag. How many {t} are there in all?", ("a + b",)),
        Template("A shop had {more} {t} and sold {b} of them. How many {t} are left in the shop?", ("more - b",)),
        Template(
            "{n} has {a} {t}. {m} gives {n} {b} more {t}, and then {n} loses {c} of them. How many {t} does {n} "
            "have now?",
            ("a + b", "r - c"),
        ),
        Template(
            "{n} buys {a} boxes with {b} {t} in each box and then gives away {c} {t}. How many {t} does {n} have left?",
            ("a * b", "r - c"),
        ),
        Template("{n} has {a} {t}. {m} has {b} times as many. How many {t} do they have together?", ("a * b", "r + a")),
        Template(
            "{n} has {a} {t}. {m} has {b} more {t} than {n}. How many {t} do they have together?", ("a + b", "r + a")
        ),
        Template(
            "A box of {t} costs {a} dollars and a bag costs {b} dollars. {n} buys {c} boxes and one bag. How many "
            "dollars does {n} pay?",
            ("a * c", "r + b"),
        ),
        Template(
            "{n} reads {a} pages on Monday and {b} pages on Tuesday. The book has {more} pages. How many pages are "
            "left?",
            ("a + b", "more - r"),
        ),
        Template(
            "{n} earns {a} dollars an hour and works {b} hours. Then {n} spends {c} dollars. How many dollars does {n} "
            "have left?",
            ("a * b", "r - c"),
        ),
    ),
    "unseen": (
        Template(
            "A bus has {more} people. At a stop {a} people get off. How many people are on the bus now?", ("more - a",)
        ),
        Template(
            "A farmer plants {a} rows with {b} trees in each row. How many trees does the farmer plant?", ("a * b",)
        ),
        Template("{n} is {a} years old. {m} is {b} years older than {n}. How old is {m}?", ("a + b",)),
        Template(
            "A rope of {product} meters is cut into {b} equal pieces. How long is each piece, in meters?",
            ("product / b",),
        ),
        Template(
            "A bus has {a} people. At a stop {b} people get on. At the next stop {c} people get off. How many people "
            "are on the bus now?",
            ("a + b", "r - c"),
        ),
        Template(
            "A baker fills {a} trays with {b} rolls each. {c} rolls burn. How many rolls are good?", ("a * b", "r - c")
        ),
        Template(
            "{n} runs {a} kilometers every day for {b} days, and then {c} kilometers more. How many kilometers is "
            "that in all?",
            ("a * b", "r + c"),
        ),
        Template("{n} is {a} years old. {m} is {b} years older. What is the sum of their ages?", ("a + b", "r + a")),
    ),
}


def open_word_problems(rest: str, seed: int = 0, **options: str) -> WordProblems:
    """Open the task `word_problems`.

    The options are `steps=1`, `steps=2` or `steps=1-2`, `templates=practised|unseen`, `size=4000` and
    `holdout=tenth|all|none`. Raises SchoolError for an unknown option or value.
    """
    known = {"steps": "1-2", "templates": "practised", "size": str(DEFAULT_SIZE), "holdout": "tenth"}
    for option in options:
        if option not in known:
            raise SchoolError(f"word_problems: unknown option `{option}`{suggest(option, [*known])}")
    if rest:
        raise SchoolError(
            f"task `word_problems:{rest}`: the task `word_problems` has no families; write `word_problems?steps=1-2`"
        )
    values = known | options
    if values["templates"] not in TEMPLATES:
        raise SchoolError(
            f"word_problems: option `templates` is `{values['templates']}`; it must be {' or '.join(TEMPLATES)}"
        )
    if not re.fullmatch(r"[12]|1-2", values["steps"]):
        raise SchoolError(f"word_problems: option `steps` is `{values['steps']}`; it must be 1, 2 or 1-2")
    if not values["size"].isdecimal() or not 1 <= int(values["size"]) <= 20_000:
        raise SchoolError(f"word_problems: option `size` is `{values['size']}`; it must be a number from 1 to 20000")
    steps = {int(digit) for digit in values["steps"].split("-")}
    templates = [template for template in TEMPLATES[values["templates"]] if len(template.steps) in steps]
    return WordProblems(templates, int(values["size"]), seed, values["holdout"])


class WordProblems(DatasetTask):
    """A task with word problems from templates. The final answer is a number in \\boxed{}, and is graded exactly."""

    in_process = True

    def __init__(
        self, templates: list[Template], size: int = DEFAULT_SIZE, seed: int = 0, holdout: str = "tenth"
    ) -> None:
        super().__init__("word_problems", seed, holdout)
        self.templates, self.size = templates, size

    @cached_property
    def all_demonstrations(self) -> list[Demonstration]:
        """Make `size` different problems with demonstrations. The thought of each demonstration has the steps of the
        solution."""
        random, found = Random(DATA_SEED), dict[str, Demonstration]()
        while len(found) < self.size:
            demonstration = make_demonstration(random, random.choice(self.templates))
            if demonstration:
                found.setdefault(demonstration.problem.id, demonstration)
        return list(found.values())

    @cached_property
    def all_problems(self) -> list[Problem]:
        return [demonstration.problem for demonstration in self.all_demonstrations]

    @cached_property
    def _train_demonstrations(self) -> list[Demonstration]:
        return [each for each in self.all_demonstrations if not self.is_held_out(each.problem)]

    def demonstrations(self, step: int, count: int) -> list[Demonstration]:
        """Return demonstrations of the train split. Each epoch has a new order."""
        return shuffled_epochs(self._train_demonstrations, self.seed, "worked", step, count)

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        """Give reward 1 if the number in \\boxed{} equals the reference, else reward 0."""
        return answer_match(completion, problem.reference, problem.messages[-1].content)


def make_demonstration(random: Random, template: Template) -> Demonstration | None:
    """Fill a template with names and numbers. Returns None if a result of the solution is not a positive number."""
    a, b, c = (random.randint(2, 12) for _ in range(3))
    numbers = {"a": a, "b": b, "c": c, "more": a + b + random.randint(1, 20), "product": a * b}
    first, second = random.sample(NAMES.split(), 2)
    question = template.text.format(n=first, m=second, t=random.choice(THINGS.split()), **numbers)
    thought, result = [], 0
    for step in template.steps:
        left, operator, right = step.split()
        x, y = ({**numbers, "r": result}[name] for name in (left, right))
        result = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[operator]
        if result <= 0:
            return None
        thought.append(f"{x} {operator} {y} = {result}.")
    problem_id = blake2b(question.encode(), digest_size=8).hexdigest()
    message = Message("user", f"{question}\n{REQUEST}")
    problem = Problem(problem_id, (message,), str(result), f"{len(template.steps)}-step", "word_problems")
    return Demonstration(problem, " ".join(thought), f"\\boxed{{{result}}}", "full")
