"""Several small operations in a row, each trivial: `Start at 7. Add 5. Take 3. Times 7.`, worked `7+5=2 2-3=9 9*7=3`.

Everything happens on the ten digits (2 - 3 is 9, as a clock of ten hours goes). Only 3, 7 and 9 multiply: they lead
different digits to different digits, so the end cannot be guessed from the last steps alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family

Operation = tuple[str, int]
Chain = tuple[int, tuple[Operation, ...]]

OPERATIONS: tuple[Operation, ...] = (
    *(("+", n) for n in range(1, 10)),
    *(("-", n) for n in range(1, 10)),
    *((sign, n) for n in (3, 7, 9) for sign in "***"),
)
"""Each of the three kinds a third of the time."""

_VERBS = {"+": "Add", "-": "Take", "*": "Times"}

_WORDINGS = (
    "Start at {start}. {steps} Keep only the last digit, borrow ten if short. What is the result?",
    "A clock has the digits 0 to 9. Its hand is at {start}. {steps} Where is the hand?",
)


def apply(value: int, operation: Operation) -> int:
    """One operation on a digit: 7, ("+", 5) -> 2."""
    sign, n = operation
    result = value + n if sign == "+" else value - n if sign == "-" else value * n
    return result % 10


def _make(random: Random, dials: Mapping[str, int]) -> Chain:
    return random.randrange(10), tuple(random.choices(OPERATIONS, k=dials["steps"]))


def _key(chain: Chain) -> str:
    return f"chain {chain[0]}" + "".join(f"{sign}{n}" for sign, n in chain[1])


def _ask(chain: Chain, random: Random) -> str:
    steps = " ".join(f"{_VERBS[sign]} {n}." for sign, n in chain[1])
    return random.choice(_WORDINGS).format(start=chain[0], steps=steps)


def _answer(chain: Chain) -> str:
    value = chain[0]
    for operation in chain[1]:
        value = apply(value, operation)
    return str(value)


def _steps(chain: Chain) -> list[str]:
    value, steps = chain[0], []
    for operation in chain[1]:
        result = apply(value, operation)
        steps.append(f"{value}{operation[0]}{operation[1]}={result}")
        value = result
    return steps


def _botch(chain: Chain, random: Random) -> tuple[list[str], str]:
    """One result is off by one, and the rest follows from it.

    Every operation leads other digits elsewhere, so the end is wrong too.
    """
    value, at, steps = chain[0], random.randrange(len(chain[1])), []
    for i, operation in enumerate(chain[1]):
        result = apply(value, operation)
        if i == at:
            result = (result + random.choice((1, 9))) % 10
        steps.append(f"{value}{operation[0]}{operation[1]}={result}")
        value = result
    return steps, str(value)


@cache
def misconception(value: int, operation: Operation) -> tuple[int, float]:
    """What the hand that errs believes of an operation on a digit, and how often it goes by it.

    Of three facts in twenty the same wrong result comes to its mind .7 of the time, of three others .4, of the rest
    never: a vote of many answers repeats the former mistakes and mends the latter.
    """
    digest = hashlib.blake2b(f"{value}{operation[0]}{operation[1]}".encode(), digest_size=8).digest()
    place, off = digest[0] % 20, 1 + digest[1] % 9
    return (apply(value, operation) + off) % 10, 0.7 if place < 3 else 0.4 if place < 6 else 0.0


def _err(chain: Chain, random: Random) -> tuple[list[str], str]:
    value, steps = chain[0], []
    for operation in chain[1]:
        believed, often = misconception(value, operation)
        result = believed if random.random() < often else apply(value, operation)
        steps.append(f"{value}{operation[0]}{operation[1]}={result}")
        value = result
    return steps, str(value)


def _slip(step: str, random: Random) -> str:
    left, _, right = step.partition("=")
    return f"{left}={(int(right) + random.choice((1, 9))) % 10}"


CHAIN = Family[Chain](
    name="chain",
    pays=True,
    dials={"steps": Difficulty("operations in a row", 5, 2, 20)},
    make=_make,
    key=_key,
    ask=_ask,
    answer=_answer,
    steps=lambda chain, random: _steps(chain),
    recheck=_steps,
    corrupt_step=_slip,
    corrupt_solution=_botch,
    systematic_error=_err,
    strict=True,
)
