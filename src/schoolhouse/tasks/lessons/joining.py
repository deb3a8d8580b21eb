"""Two numbers written one behind the other: `What number is 36 with 5 behind it?` is 365. Copying, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.lessons.family import Dial, Family

Pair = tuple[int, int]


def _make(random: Random, dials: Mapping[str, int]) -> Pair:
    a, b = (random.randint(1, dials["each"]) for _ in range(2))
    return random.randrange(10 ** (a - 1), 10**a), random.randrange(10 ** (b - 1), 10**b)


def _ask(pair: Pair, random: Random) -> str:
    a, b = pair
    return random.choice((f"What number is {a} with {b} behind it?", f"Write {a} and behind it {b}, as one number."))


JOINING = Family[Pair](
    name="joining",
    pays=False,
    dials={"each": Dial("most digits of each number", 4, 1, 8)},
    make=_make,
    key=lambda pair: f"joining {pair[0]} {pair[1]}",
    ask=_ask,
    answer=lambda pair: f"{pair[0]}{pair[1]}",
    steps=lambda pair, random: [f"{pair[0]}&{pair[1]}={pair[0]}{pair[1]}"],
    recheck=lambda pair: [f"{pair[0]}&{pair[1]}={pair[0]}{pair[1]}"],
    strict=True,
)
