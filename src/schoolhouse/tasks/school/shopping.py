"""Two kinds of things are bought; the price of one is asked for.

`Emily buys 3 apples and 2 oranges; each orange costs $2; the total is $13; what does an apple cost?` is worked as
`2*2=4 13-4=9 9/3=3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family
from schoolhouse.tasks.school.vocabulary import NAMES, THINGS

Purchase = tuple[int, int, int, int]
"""How many of the first and of the second, then what each of them costs."""

_PAIRS = tuple((a, b) for a in THINGS for b in THINGS if a != b)

_WORDINGS = (
    "{name} buys {n} {many} and {m} {others}; each {other} costs ${q}; the total is ${total}; what does {one} cost?",
    "{name} pays ${total} for {n} {many} and {m} {others}. The price of {another} is ${q}. What is the price of {one}?",
    "{n} {many} and {m} {others} cost ${total} together. {Others} are ${q} each. How many dollars is {one}?",
    "{name} takes {m} {others} at ${q} each and {n} {many}. The bill is ${total}. How much is each {thing}?",
)


def purchase_key(purchase: Purchase) -> str:
    """The key of a purchase: its numbers, the same whichever price is asked for."""
    n, m, p, q = purchase
    return "shopping " + " ".join(f"{count}x{price}" for count, price in sorted(((n, p), (m, q))))


def _make(random: Random, dials: Mapping[str, int]) -> Purchase:
    top = dials["top"]
    return (
        random.randint(2, top),
        random.randint(2, top),
        random.randint(1, top),
        random.randint(1, top),
    )


def total_of(purchase: Purchase) -> int:
    """What all of it costs."""
    n, m, p, q = purchase
    return n * p + m * q


def _ask(purchase: Purchase, random: Random) -> str:
    n, m, _, q = purchase
    thing, other = random.choice(_PAIRS)
    return random.choice(_WORDINGS).format(
        name=random.choice(NAMES),
        n=n,
        m=m,
        q=q,
        total=total_of(purchase),
        thing=thing,
        many=THINGS[thing],
        one=with_article(thing),
        other=other,
        others=THINGS[other],
        Others=THINGS[other].capitalize(),
        another=with_article(other),
    )


def with_article(thing: str) -> str:
    """`an apple`, `a bun`."""
    return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"


def _steps(purchase: Purchase) -> list[str]:
    n, m, p, q = purchase
    total = total_of(purchase)
    return [f"{m}*{q}={m * q}", f"{total}-{m * q}={n * p}", f"{n * p}/{n}={p}"]


def _recheck(purchase: Purchase) -> list[str]:
    """From the price found back to the one that was given."""
    n, m, p, q = purchase
    return _steps((m, n, q, p))


SHOPPING = Family[Purchase](
    name="shopping",
    pays=True,
    dials={"top": Difficulty("largest count and price", 12, 3, 20)},
    make=_make,
    key=purchase_key,
    ask=_ask,
    answer=lambda purchase: str(purchase[2]),
    steps=lambda purchase, random: _steps(purchase),
    recheck=_recheck,
)
