"""Sums worked so that no step looks further back than the one before it, as in the scratchpads of STaR.

`624 + 259` is worked as `624+259 4+9=13,3 62+25+1 2+5+1=8,83 6+2 6+2=8,883`: what is left of both numbers (and the
carry), its last column, and behind the comma what has been written so far. A longer sum has more steps of the same
kind, where `addition` has to look up columns further and further inside the question.
"""

from __future__ import annotations

from schoolhouse.tasks.school.addition import ADDITION, Sum
from schoolhouse.tasks.school.family import Family


def moves(a: int, b: int) -> list[str]:
    """The columns of a sum of two numbers with as many digits, units first."""
    steps, carry, written = [], 0, ""
    for upto in range(len(str(a)), 0, -1):
        x, y = str(a)[:upto], str(b)[:upto]
        total, plus = int(x[-1]) + int(y[-1]) + carry, "+1" if carry else ""
        written = (str(total) if upto == 1 else str(total % 10)) + written
        steps.append(f"{x}+{y}{plus} {x[-1]}+{y[-1]}{plus}={total},{written}")
        carry = total // 10
    return steps


LONGHAND = Family[Sum](
    name="longhand",
    pays=True,
    dials=ADDITION.dials,
    make=ADDITION.make,
    key=ADDITION.key,
    ask=ADDITION.ask,
    answer=ADDITION.answer,
    steps=lambda pair, random: moves(*pair),
    recheck=lambda pair: moves(pair[1], pair[0]),
    strict=True,
)
