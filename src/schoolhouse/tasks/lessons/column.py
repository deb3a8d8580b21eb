"""One column of a long sum: how `682 + 517` begins (`682+517 2+7=9,9`), or what follows a column that is written down.

Nobody is shown a whole sum: it is what a long sum is made of (`longhand`).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.lessons.family import Dial, Family
from schoolhouse.tasks.lessons.longhand import moves

Column = tuple[int, int, int]
"""Two numbers of as many digits, and which of their columns is asked for, the units being 0."""


def _make(random: Random, dials: Mapping[str, int]) -> Column:
    digits = random.randint(1, dials["each"])
    a, b = (random.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return a, b, random.choice((0, random.randrange(digits)))


def _ask(column: Column, random: Random) -> str:
    a, b, at = column
    if not at:
        return random.choice((f"How does the sum {a} + {b} begin?", f"Write the first column of {a} + {b}."))
    before = moves(a, b)[at - 1]
    return random.choice((f"Here stands {before}. What comes next?", f"Write the column behind {before}."))


def _steps(column: Column) -> list[str]:
    a, b, at = column
    return [moves(a, b)[at]]


def _written(column: Column) -> str:
    """All digits of the sum so far."""
    return _steps(column)[0].split(",")[1]


def _slip(step: str, random: Random) -> str:
    """One digit is another."""
    at = random.choice([i for i, letter in enumerate(step) if letter.isdigit()])
    return f"{step[:at]}{(int(step[at]) + random.randint(1, 9)) % 10}{step[at + 1 :]}"


COLUMN = Family[Column](
    name="column",
    pays=False,
    dials={"each": Dial("most digits of each number", 4, 1, 8)},
    make=_make,
    key=lambda column: f"column {column[0]} {column[1]} {column[2]}",
    ask=_ask,
    answer=_written,
    steps=lambda column, random: _steps(column),
    recheck=_steps,
    slip=_slip,
    strict=True,
)
