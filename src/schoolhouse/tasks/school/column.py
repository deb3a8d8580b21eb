"""Columns of a long sum: how `682 + 517` begins (`682+517 2+7=9,9`), what follows a column, how a sum ends.

Never a whole sum: it is what a long sum is made of (`longhand`). Of three ways to ask the first wants one column, the
second says in brackets what is to be written in the end, as a hint does, and the third wants what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from schoolhouse.tasks.school.family import Difficulty, Family, held_out, sum_key
from schoolhouse.tasks.school.longhand import moves

_MOST = 4  # columns in a row


class Columns(NamedTuple):
    """Two numbers of as many digits, and which of their columns are asked for, from `at` up to `end`, units being 0."""

    way: str
    a: int
    b: int
    at: int
    end: int

    @property
    def steps(self) -> list[str]:
        return moves(self.a, self.b)[self.at : self.end]

    @property
    def written(self) -> str:
        """All digits of the sum so far."""
        return self.steps[-1].split(",")[1]


def _make(random: Random, dials: Mapping[str, int]) -> Columns:
    digits = random.randint(2, dials["each"])
    while True:  # a piece of a sum that an exam asks for may tell its end
        a, b = (random.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        if not held_out(sum_key(a, b)):
            break
    way = random.choice(("next", "until", "rest"))
    if way == "rest":
        return Columns(way, a, b, random.randint(max(1, digits - _MOST), digits - 1), digits)
    at = random.choice((0, random.randrange(digits)))
    most = 1 if way == "next" else min(_MOST, digits - at - (at == 0))
    return Columns(way, a, b, at, at + random.randint(1, most))


def _ask(asked: Columns, random: Random) -> str:
    a, b = asked.a, asked.b
    if asked.at:
        before = moves(a, b)[asked.at - 1]
        if asked.way == "rest":
            return random.choice((f"Here stands {before}. How does it end?", f"Write the rest behind {before}."))
        text = random.choice((f"Here stands {before}. What comes next?", f"Write the column behind {before}."))
    else:
        text = random.choice((f"How does the sum {a} + {b} begin?", f"Write the first column of {a} + {b}."))
    return text if asked.way == "next" else f"{text} ({asked.written})"


def _slip(step: str, random: Random) -> str:
    """One digit is another."""
    at = random.choice([i for i, letter in enumerate(step) if letter.isdigit()])
    return f"{step[:at]}{(int(step[at]) + random.randint(1, 9)) % 10}{step[at + 1 :]}"


COLUMN = Family[Columns](
    name="column",
    pays=False,
    dials={"each": Difficulty("most digits of each number", 4, 2, 8)},
    make=_make,
    key=lambda asked: f"column {' '.join(map(str, asked))}",
    ask=_ask,
    answer=lambda asked: asked.written,
    steps=lambda asked, random: asked.steps,
    recheck=lambda asked: asked.steps,
    corrupt_step=_slip,
    strict=True,
)
