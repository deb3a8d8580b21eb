"""Several trivial operations in a row: `Start at 7. Add 5. Take 3. Times 7.` has the steps `7+5=2 2-3=9 9*7=3`.

All results are digits, modulo ten: 2 - 3 is 9. Factors are 3, 7 and 9 only: they map different digits to different
digits, so the answer cannot be guessed from the last steps alone.
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
"""Each of the three signs is a third of the list."""

_VERBS = {"+": "Add", "-": "Take", "*": "Times"}

_WORDINGS = (
    "Start at {start}. {steps} Keep only the last digit, borrow ten if short. What is the result?",
    "A clock has the digits 0 to 9. Its hand is at {start}. {steps} Where is the hand?",
)


def apply_operation(value: int, operation: Operation) -> int:
    """One operation on a digit: 7, ("+", 5) -> 2."""
    sign, n = operation
    result = value + n if sign == "+" else value - n if sign == "-" else value * n
    return result % 10


def _sample(random: Random, difficulty: Mapping[str, int]) -> Chain:
    return random.randrange(10), tuple(random.choices(OPERATIONS, k=difficulty["steps"]))


def _key(chain: Chain) -> str:
    return f"chain {chain[0]}" + "".join(f"{sign}{n}" for sign, n in chain[1])


def _question(chain: Chain, random: Random) -> str:
    steps = " ".join(f"{_VERBS[sign]} {n}." for sign, n in chain[1])
    return random.choice(_WORDINGS).format(start=chain[0], steps=steps)


def _answer(chain: Chain) -> str:
    value = chain[0]
    for operation in chain[1]:
        value = apply_operation(value, operation)
    return str(value)


def _steps(chain: Chain) -> list[str]:
    value, steps = chain[0], []
    for operation in chain[1]:
        result = apply_operation(value, operation)
        steps.append(f"{value}{operation[0]}{operation[1]}={result}")
        value = result
    return steps


def _corrupt_solution(chain: Chain, random: Random) -> tuple[list[str], str]:
    """Steps with one result that is off by one and carried on, and their answer.

    The answer is wrong, because operations map different digits to different digits.
    """
    value, at, steps = chain[0], random.randrange(len(chain[1])), []
    for i, operation in enumerate(chain[1]):
        result = apply_operation(value, operation)
        if i == at:
            result = (result + random.choice((1, 9))) % 10
        steps.append(f"{value}{operation[0]}{operation[1]}={result}")
        value = result
    return steps, str(value)


@cache
def misconception(value: int, operation: Operation) -> tuple[int, float]:
    """The wrong result of an operation that `systematic_error` uses, and the probability of using it.

    It is .7 for three operations in twenty, .4 for another three, and 0 for the rest. A majority vote repeats the first
    kind of mistake and corrects the second.
    """
    digest = hashlib.blake2b(f"{value}{operation[0]}{operation[1]}".encode(), digest_size=8).digest()
    place, offset = digest[0] % 20, 1 + digest[1] % 9
    return (apply_operation(value, operation) + offset) % 10, 0.7 if place < 3 else 0.4 if place < 6 else 0.0


def _systematic_error(chain: Chain, random: Random) -> tuple[list[str], str]:
    value, steps = chain[0], []
    for operation in chain[1]:
        wrong, probability = misconception(value, operation)
        result = wrong if random.random() < probability else apply_operation(value, operation)
        steps.append(f"{value}{operation[0]}{operation[1]}={result}")
        value = result
    return steps, str(value)


def _corrupt_step(step: str, random: Random) -> str:
    left, _, right = step.partition("=")
    return f"{left}={(int(right) + random.choice((1, 9))) % 10}"


CHAIN = Family[Chain](
    name="chain",
    thinking_helps=True,
    difficulty={"steps": Difficulty("operations in a row", 5, 2, 20)},
    sample=_sample,
    key=_key,
    question=_question,
    answer=_answer,
    steps=lambda chain, random: _steps(chain),
    recheck=_steps,
    corrupt_step=_corrupt_step,
    corrupt_solution=_corrupt_solution,
    systematic_error=_systematic_error,
    steps_checkable=True,
)
