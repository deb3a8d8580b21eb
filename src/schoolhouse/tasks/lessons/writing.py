"""A sum written without blanks, and what is left of it without its last digits: `682 + 517` is `682+517`, then `68+51`.

Nothing is added up: it is what a long sum is made of besides (`longhand`).
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.lessons.family import Dial, Family

Sum = tuple[int, int, bool]
"""Two numbers of as many digits, and whether what is left is asked for as well."""


def _make(random: Random, dials: Mapping[str, int]) -> Sum:
    digits = random.randint(1, dials["each"])
    a, b = (random.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return a, b, digits > 1 and random.random() < 0.5


def _ask(pair: Sum, random: Random) -> str:
    a, b, left = pair
    if not left:
        return random.choice((f"Write {a} + {b} without blanks.", f"How is {a} + {b} written?"))
    return random.choice(
        (f"What is left of {a} + {b} without the last digits?", f"Take the last digits off {a} + {b}.")
    )


def _steps(pair: Sum) -> list[str]:
    a, b, left = pair
    return [f"{a}+{b}"] + ([f"{a // 10}+{b // 10}"] if left else [])


def _slip(step: str, random: Random) -> str:
    """One digit is another."""
    at = random.choice([i for i, letter in enumerate(step) if letter.isdigit()])
    return f"{step[:at]}{(int(step[at]) + random.randint(1, 9)) % 10}{step[at + 1 :]}"


WRITING = Family[Sum](
    name="writing",
    pays=False,
    dials={"each": Dial("most digits of each number", 4, 1, 8)},
    make=_make,
    key=lambda pair: f"writing {pair[0]} {pair[1]} {pair[2]}",
    ask=_ask,
    answer=lambda pair: _steps(pair)[-1],
    steps=lambda pair, random: _steps(pair),
    recheck=_steps,
    slip=_slip,
    strict=True,
    info=lambda pair: {"written": _steps(pair)[-1]},
    accepts=lambda answer, info: answer.replace(" ", "") == info["written"],
)
