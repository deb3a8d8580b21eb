"""The family `chain`: several simple operations in a row. Each operation uses the result of the operation before it.

For example, the problem "start at 7, add 5, take 3, times 7" has the steps `7+5=2 2-3=9 9*7=3`. All results are taken
modulo ten, so 2 - 3 is 9. The only factors are 3, 7 and 9, because these factors map different digits to different
digits. The answer therefore cannot be guessed from the last steps alone.
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
    """Apply one operation to a digit, for example 7, ("+", 5) -> 2."""
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
    """Return the steps of a solution that has one mistake, and the wrong answer of the solution.

    One result is too large or too small by one, and the later steps use the wrong result. The answer is always wrong,
    because the operations map different digits to different digits.
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
    """Return a wrong result of an operation, and the probability of this mistake in the style `systematic_error`.

    The probability of a mistake is .7 for 3 of 20 operations, .4 for another 3 of 20 operations, and 0 for all others.
    A majority vote over many samples keeps a mistake that has probability .7, and corrects a mistake that has
    probability .4.
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
