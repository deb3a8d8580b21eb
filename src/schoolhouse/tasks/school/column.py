"""The family `column`: some columns of a long sum, but never all columns, in the format of the family `longhand`.

For example, `682+517 2+7=9,9` is the first column of `682 + 517`. The family `column` has three kinds of questions. A
question of the kind `next` asks for one column. A question of the kind `until` gives some digits in brackets as a hint,
and asks for all columns up to these digits. A question of the kind `rest` asks for all columns that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from schoolhouse.tasks.school.family import Difficulty, Family, is_held_out, sum_key
from schoolhouse.tasks.school.longhand import longhand_steps

_MAX_COLUMNS = 4  # in a row


class Columns(NamedTuple):
    """Two numbers with the same number of digits, and the columns that a question asks for.

    The columns are from `at` (included) to `end` (excluded). Column 0 is the column of the units.
    """

    kind: str
    a: int
    b: int
    at: int
    end: int

    @property
    def steps(self) -> list[str]:
        return longhand_steps(self.a, self.b)[self.at : self.end]

    @property
    def digits_so_far(self) -> str:
        """Return all digits of the sum that are known after the columns that the question asks for have been added."""
        return self.steps[-1].split(",")[1]


def _sample(random: Random, difficulty: Mapping[str, int]) -> Columns:
    digits = random.randint(2, difficulty["each"])
    while True:  # columns of a held-out sum may reveal its answer
        a, b = (random.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        if not is_held_out(sum_key(a, b)):
            break
    kind = random.choice(("next", "until", "rest"))
    if kind == "rest":
        return Columns(kind, a, b, random.randint(max(1, digits - _MAX_COLUMNS), digits - 1), digits)
    at = random.choice((0, random.randrange(digits)))
    longest = 1 if kind == "next" else min(_MAX_COLUMNS, digits - at - (at == 0))
    return Columns(kind, a, b, at, at + random.randint(1, longest))


def _question(columns: Columns, random: Random) -> str:
    a, b = columns.a, columns.b
    if columns.at:
        before = longhand_steps(a, b)[columns.at - 1]
        if columns.kind == "rest":
            return random.choice((f"Here stands {before}. How does it end?", f"Write the rest behind {before}."))
        text = random.choice((f"Here stands {before}. What comes next?", f"Write the column behind {before}."))
    else:
        text = random.choice((f"How does the sum {a} + {b} begin?", f"Write the first column of {a} + {b}."))
    return text if columns.kind == "next" else f"{text} ({columns.digits_so_far})"


def _corrupt_step(step: str, random: Random) -> str:
    """Change one digit of a step."""
    at = random.choice([i for i, letter in enumerate(step) if letter.isdigit()])
    return f"{step[:at]}{(int(step[at]) + random.randint(1, 9)) % 10}{step[at + 1 :]}"


COLUMN = Family[Columns](
    name="column",
    thinking_helps=False,
    difficulty={"each": Difficulty("most digits of each number", 4, 2, 8)},
    sample=_sample,
    key=lambda columns: f"column {' '.join(map(str, columns))}",
    question=_question,
    answer=lambda columns: columns.digits_so_far,
    steps=lambda columns, random: columns.steps,
    recheck=lambda columns: columns.steps,
    corrupt_step=_corrupt_step,
    steps_checkable=True,
)
