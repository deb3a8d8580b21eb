"""The family `shopping`: a person buys two kinds of things, and the question asks for the price of one thing.

The question `Emily buys 3 apples and 2 oranges; each orange costs $2; the total is $13; what does an apple cost?` has
the steps `2*2=4 13-4=9 9/3=3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family
from schoolhouse.tasks.school.vocabulary import NAMES, THINGS

Purchase = tuple[int, int, int, int]
"""Number of the first and of the second things, then the price of each."""

_PAIRS = tuple((a, b) for a in THINGS for b in THINGS if a != b)

_WORDINGS = (
    "{name} buys {n} {many} and {m} {others}; each {other} costs ${q}; the total is ${total}; what does {one} cost?",
    "{name} pays ${total} for {n} {many} and {m} {others}. The price of {another} is ${q}. What is the price of {one}?",
    "{n} {many} and {m} {others} cost ${total} together. {Others} are ${q} each. How many dollars is {one}?",
    "{name} takes {m} {others} at ${q} each and {n} {many}. The bill is ${total}. How much is each {thing}?",
)


def purchase_key(purchase: Purchase) -> str:
    """Return the key that identifies a purchase by its numbers. The key does not depend on which price is asked."""
    n, m, p, q = purchase
    return "shopping " + " ".join(f"{count}x{price}" for count, price in sorted(((n, p), (m, q))))


def _sample(random: Random, difficulty: Mapping[str, int]) -> Purchase:
    top = difficulty["top"]
    return random.randint(2, top), random.randint(2, top), random.randint(1, top), random.randint(1, top)


def total_price(purchase: Purchase) -> int:
    """Return the total price of a purchase."""
    n, m, p, q = purchase
    return n * p + m * q


def _question(purchase: Purchase, random: Random) -> str:
    n, m, _, q = purchase
    thing, other = random.choice(_PAIRS)
    return random.choice(_WORDINGS).format(
        name=random.choice(NAMES),
        n=n,
        m=m,
        q=q,
        total=total_price(purchase),
        thing=thing,
        many=THINGS[thing],
        one=with_article(thing),
        other=other,
        others=THINGS[other],
        Others=THINGS[other].capitalize(),
        another=with_article(other),
    )


def with_article(thing: str) -> str:
    """Write a thing with its article, such as `an apple` or `a bun`."""
    return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"


def _steps(purchase: Purchase) -> list[str]:
    n, m, p, q = purchase
    total = total_price(purchase)
    return [f"{m}*{q}={m * q}", f"{total}-{m * q}={n * p}", f"{n * p}/{n}={p}"]


def _recheck(purchase: Purchase) -> list[str]:
    """Check a solution by computing the given price from the answer."""
    n, m, p, q = purchase
    return _steps((m, n, q, p))


SHOPPING = Family[Purchase](
    name="shopping",
    thinking_helps=True,
    difficulty={"top": Difficulty("largest count and price", 12, 3, 20)},
    sample=_sample,
    key=purchase_key,
    question=_question,
    answer=lambda purchase: str(purchase[2]),
    steps=lambda purchase, random: _steps(purchase),
    recheck=_recheck,
)
