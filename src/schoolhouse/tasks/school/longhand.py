"""The family `longhand`: sums in which each step depends only on the step before it, as in the scratchpads of STaR.

The steps of `624 + 259` are `624+259 4+9=13,3 62+25+1 2+5+1=8,83 6+2 6+2=8,883`. Each step first writes the remaining
digits of both numbers and the carry, and then adds the last column. After the comma, the step writes all digits of the
result so far. Longer sums have more steps of the same kind. In the family `addition`, by contrast, the model must find
the column of each step in the question.
"""

from __future__ import annotations

from schoolhouse.tasks.school.addition import ADDITION, Sum
from schoolhouse.tasks.school.family import Family


def longhand_steps(a: int, b: int) -> list[str]:
    """Return the steps to add two numbers with the same number of digits, starting with the units."""
    steps, carry, digits = [], 0, ""
    for length in range(len(str(a)), 0, -1):
        x, y = str(a)[:length], str(b)[:length]
        total, plus = int(x[-1]) + int(y[-1]) + carry, "+1" if carry else ""
        digits = (str(total) if length == 1 else str(total % 10)) + digits
        steps.append(f"{x}+{y}{plus} {x[-1]}+{y[-1]}{plus}={total},{digits}")
        carry = total // 10
    return steps


LONGHAND = Family[Sum](
    name="longhand",
    thinking_helps=True,
    difficulty=ADDITION.difficulty,
    sample=ADDITION.sample,
    key=ADDITION.key,
    question=ADDITION.question,
    answer=ADDITION.answer,
    steps=lambda pair, random: longhand_steps(*pair),
    recheck=lambda pair: longhand_steps(pair[1], pair[0]),
    steps_checkable=True,
)
