"""Columns of a long sum: how `682 + 517` begins (`682+517 2+7=9,9`), or what follows a column that is written down.

One column or two in a row, and never a whole sum: it is what a long sum is made of (`longhand`).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.lessons.family import Dial, Family
from schoolhouse.tasks.lessons.longhand import moves

Columns = tuple[int, int, int, int]
"""Two numbers of as many digits, which of their columns is asked for first, the units being 0, and how many."""


def _make(random: Random, dials: Mapping[str, int]) -> Columns:
    digits = random.randint(1, dials["each"])
    a, b = (random.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    at = random.choice((0, random.randrange(digits)))
    two = at + 2 <= digits > 2 and random.random() < 0.5
    return a, b, at, 1 + two


def _ask(asked: Columns, random: Random) -> str:
    a, b, at, count = asked
    if not at and count == 1:
        return random.choice((f"How does the sum {a} + {b} begin?", f"Write the first column of {a} + {b}."))
    if not at:
        return random.choice((f"How do the first two columns of {a} + {b} go?", f"Begin {a} + {b}, two columns."))
    before = moves(a, b)[at - 1]
    if count == 1:
        return random.choice((f"Here stands {before}. What comes next?", f"Write the column behind {before}."))
    return random.choice((f"Here stands {before}. What are the next two?", f"Write two columns behind {before}."))


def _steps(asked: Columns) -> list[str]:
    a, b, at, count = asked
    return moves(a, b)[at : at + count]


def _written(asked: Columns) -> str:
    """All digits of the sum so far."""
    return _steps(asked)[-1].split(",")[1]


def _slip(step: str, random: Random) -> str:
    """One digit is another."""
    at = random.choice([i for i, letter in enumerate(step) if letter.isdigit()])
    return f"{step[:at]}{(int(step[at]) + random.randint(1, 9)) % 10}{step[at + 1 :]}"


COLUMN = Family[Columns](
    name="column",
    pays=False,
    dials={"each": Dial("most digits of each number", 4, 1, 8)},
    make=_make,
    key=lambda asked: f"column {' '.join(map(str, asked))}",
    ask=_ask,
    answer=_written,
    steps=lambda asked, random: _steps(asked),
    recheck=_steps,
    slip=_slip,
    strict=True,
)
