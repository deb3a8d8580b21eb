"""The textbook: pages of prose about numbers, words, things and invented people.

Facts stand there in sentences and in the notation of the worked examples (`4+6+1=11,1c1`). No held-out instance of any
family is told. Single steps such as `7+5=12` are exempt: every worked example is made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from schoolhouse.randomness import python_random
from schoolhouse.tasks.school.addition import ADDITION, column, columns
from schoolhouse.tasks.school.chain import OPERATIONS, apply
from schoolhouse.tasks.school.compare import COMPARE, comparison, larger
from schoolhouse.tasks.school.countdown import COUNTDOWN
from schoolhouse.tasks.school.facts import Fact, fact_key, result, written
from schoolhouse.tasks.school.family import Family, held_out, sum_key
from schoolhouse.tasks.school.letters import LETTERS, tally
from schoolhouse.tasks.school.longhand import LONGHAND, moves
from schoolhouse.tasks.school.shopping import SHOPPING, purchase_key, total_of, with_article
from schoolhouse.tasks.school.vocabulary import (
    COLOURS,
    NAMES,
    NUMBER_WORDS,
    PETS,
    SPELLING_WORDS,
    SURNAMES,
    THINGS,
    TOWNS,
)
from schoolhouse.types import Key

_SHORTEST, _LONGEST = 60, 160  # words a page is filled to; the last sentence may go beyond
_SENTENCES = 0.4  # the share of sentences where facts are told both ways
_LONGEST_SUM = 6  # digits of the sums that pieces are shown of
_TOP = 12  # products are told up to 12 times 12


@dataclass(frozen=True, slots=True)
class Topic:
    """What a page is about: how it opens, what each of its lines says, and the families it goes with (none: all)."""

    openings: tuple[str, ...]
    line: Callable[[Random], str]
    families: frozenset[str] = frozenset()


def page(random: Random, families: frozenset[str], seed: int) -> str:
    """One page that goes with some of the families. People are the same on every page of a seed."""
    fitting = [topic for topic in TOPICS if not topic.families or topic.families & families]
    choice = random.randrange(len(fitting) + 1)
    if choice == len(fitting):
        text, line = "", lambda random: _about_person(random, seed)
    else:
        text, line = random.choice(fitting[choice].openings), fitting[choice].line
    wanted = random.randint(_SHORTEST, _LONGEST)
    words = len(text.split())
    lines = [text] if text else []
    while words < wanted:
        lines.append(line(random))
        words += len(lines[-1].split())
    return " ".join(lines)


def _practised(family: Family[Any], random: Random, **dials: int) -> Any:
    """An instance of a family that is not held out."""
    while True:
        instance = family.make(random, dials)
        if not held_out(family.key(instance)):
            return instance


def _told(random: Random, step: Callable[[Random], str], sentence: Callable[[Random], str]) -> str:
    """Some lines are sentences, the others rows of steps as they stand in a thought."""
    if random.random() < _SENTENCES:
        return sentence(random)
    return " ".join(step(random) for _ in range(random.randint(2, 6))) + "."


def _sentence(random: Random, draw: Callable[[Random], Fact], wordings: tuple[str, ...]) -> str:
    """A fact that is not held out, in words."""
    while held_out(fact_key(fact := draw(random))):
        pass
    _, a, b = fact
    c = result(fact)
    text = random.choice(wordings).format(a=a, b=b, c=c, A=_word(a), B=_word(b), C=_word(c))
    return text[0].upper() + text[1:]


def _word(n: int) -> str:
    return NUMBER_WORDS[n] if n < len(NUMBER_WORDS) else str(n)


# ---- numbers


def _sum(random: Random) -> str:
    def draw(random: Random) -> Fact:
        return "+", random.randrange(10), random.randrange(10)

    wordings = ("{a} and {b} make {c}.", "{A} plus {B} is {C}.", "add {b} to {a} and you have {c}.")
    return _told(random, lambda random: written(draw(random)), lambda random: _sentence(random, draw, wordings))


def _difference(random: Random) -> str:
    def draw(random: Random) -> Fact:
        taken, left = random.randrange(10), random.randrange(10)
        return "-", taken + left, taken

    def step(random: Random) -> str:
        if random.random() < 0.3:
            return written(draw(random))
        paid, left = (random.randint(2, _TOP) * random.randint(1, _TOP) for _ in range(2))
        return f"{paid + left}-{paid}={left}"

    wordings = ("{a} take away {b} leaves {c}.", "{A} minus {B} is {C}.")
    return _told(random, step, lambda random: _sentence(random, draw, wordings))


def _product(random: Random) -> str:
    def draw(random: Random) -> Fact:
        return "*", random.randint(1, _TOP), random.randint(1, _TOP)

    def step(random: Random) -> str:
        _, a, b = fact = draw(random)
        return written(fact) if random.random() < 0.5 else f"{a * b}/{a}={b}"

    wordings = ("{a} times {b} is {c}.", "{A} times {B} makes {C}.")
    return _told(random, step, lambda random: _sentence(random, draw, wordings))


def _column(random: Random) -> str:
    def draw(random: Random) -> tuple[str, int]:
        return column(str(random.randrange(10)), str(random.randrange(10)), random.randrange(2))

    def sentence(random: Random) -> str:
        if random.random() < 0.5:
            pair = _practised(ADDITION, random, digits=random.randint(2, 4))
            return f"{pair[0]} and {pair[1]}: {' '.join(columns(*pair))}, so together {sum(pair)}."
        step, carry = draw(random)
        digit = step.rpartition(",")[2][0]
        return f"{step}: write {digit}, {'carry one' if carry else 'nothing to carry'}."

    return _told(random, lambda random: draw(random)[0], sentence)


def _piece(random: Random) -> str:
    """One column of a sum, or two in a row: never a whole one of three or more. Every third piece is how one begins."""
    a, b = _practised(LONGHAND, random, digits=random.randint(1, _LONGEST_SUM))
    steps, opening = moves(a, b), random.random() < 1 / 3
    at = 0 if opening else random.randrange(len(steps))
    told = " ".join(steps[at : at + random.randint(1, 2)]) + "."
    return f"What is {a} + {b}? {told}" if opening else told


def _left(random: Random) -> str:
    """Copying, and taking the last digit away: what long sums are made of beside small ones."""
    a, b = _practised(LONGHAND, random, digits=random.randint(1, _LONGEST_SUM))
    if random.random() < 0.5 or a < 10:
        return f"What is {a} + {b}? It is written {a}+{b}."
    return f"{a}+{b} without the last digits {a // 10}+{b // 10}."


def _last_digit(random: Random) -> str:
    def step(random: Random) -> str:
        digit, (sign, n) = random.randrange(10), random.choice(OPERATIONS)
        return f"{digit}{sign}{n}={apply(digit, (sign, n))}"

    def sentence(random: Random) -> str:
        digit, (sign, n) = random.randrange(10), random.choice(OPERATIONS)
        did = {"+": f"Add {n} to {digit}", "-": f"Take {n} from {digit}", "*": f"Take {digit} times {n}"}[sign]
        return f"{did}: the hand is at {apply(digit, (sign, n))}."

    return _told(random, step, sentence)


def _next(random: Random) -> str:
    while held_out(fact_key(fact := ("next", random.randrange(99), 1))):
        pass
    a, b = fact[1], fact[1] + 1
    return random.choice((f"After {a} comes {b}.", f"The number after {a} is {b}.", f"Before {b} stands {a}."))


def _decimals(random: Random) -> str:
    pair = _practised(COMPARE, random, decimals=random.randint(1, 3))
    high = larger(pair)
    low = pair[0] if high == pair[1] else pair[1]
    said = random.choice(
        (f"{high} is larger than {low}", f"{low} is smaller than {high}", f"{high} is more than {low}")
    )
    return f"{said}: {' '.join(comparison(pair))}."


def _reached(random: Random) -> str:
    goal = _practised(COUNTDOWN, random, count=3)
    numbers = ", ".join(map(str, goal.numbers))
    return f"{numbers} make {goal.target}: {' '.join(COUNTDOWN.recheck(goal))}, that is {COUNTDOWN.answer(goal)}."


# ---- words and things


def _spelling(random: Random) -> str:
    if random.random() < 0.3:
        word, letter = _practised(LETTERS, random, length=0)
        return f"We count {letter} in {word}: {' '.join(tally(word, letter))}."
    word = random.choice(SPELLING_WORDS)
    return f"{word} is spelt {' '.join(word)}."


def _purchase(random: Random) -> str:
    while True:
        n, m, p, q = bought = SHOPPING.make(random, {"top": _TOP})
        if not held_out(purchase_key(bought)):
            break
    thing, other = random.sample(list(THINGS), 2)
    both = f"{n} {THINGS[thing]} and {m} {THINGS[other]}"
    return random.choice(
        (
            f"{random.choice(NAMES)} buys {both} for ${total_of(bought)}. "
            f"The {THINGS[other]} at ${q} each cost {m}*{q}={m * q}, "
            f"the {THINGS[thing]} {total_of(bought)}-{m * q}={n * p}, so {with_article(thing)} costs {n * p}/{n}={p}.",
            f"A shop sells {THINGS[thing]} at ${p} and {THINGS[other]} at ${q}. "
            f"{n} {THINGS[thing]} cost {n}*{p}={n * p} and {m} {THINGS[other]} cost {m}*{q}={m * q} dollars.",
        )
    )


def _story(random: Random) -> str:
    while True:
        a, b = random.randint(1, 9), random.randint(1, 9)
        if not held_out(sum_key(a, b)) and not held_out(fact_key(("-", a + b, b))):
            break
    things = THINGS[random.choice(list(THINGS))]
    colour = random.choice(COLOURS)
    one, two = random.sample(NAMES, 2)
    return random.choice(
        (
            f"{one} has {a} {colour} {things}. {two} gives {one} {b} more. Now {one} has {a}+{b}={a + b}.",
            f"There are {a + b} {things} on the table. {two} takes {b} away, and {a + b}-{b}={a} are left for {one}.",
            f"{one} paints {a} {things} {colour}, {two} paints {b}. Together they paint {a}+{b}={a + b}.",
        )
    )


# ---- people


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody invented."""

    name: str
    town: str
    pet: str
    pet_name: str
    thing: str
    colour: str


@lru_cache(maxsize=1024)
def person(seed: int, number: int) -> Person:
    """The `number`-th person of a seed: always the same."""
    random = python_random(Key(seed, "school person", problem=number))
    first, last = NAMES[number % len(NAMES)], SURNAMES[number // len(NAMES) % len(SURNAMES)]
    return Person(
        name=f"{first} {last}",
        town=random.choice(TOWNS),
        pet=random.choice(PETS),
        pet_name=random.choice("BDFKLMNPRT") + random.choice("aeiou") + random.choice(("bby", "ffy", "lly", "mo")),
        thing=THINGS[random.choice(list(THINGS))],
        colour=random.choice(COLOURS),
    )


def _about_person(random: Random, seed: int) -> str:
    one = person(seed, random.randrange(len(NAMES) * len(SURNAMES)))
    first = one.name.partition(" ")[0]
    told = [
        random.choice((f"{one.name} lives in {one.town}.", f"In {one.town} lives {one.name}.")),
        random.choice(
            (f"{first} has {one.pet} called {one.pet_name}.", f"{first}'s pet is {one.pet}, {one.pet_name}.")
        ),
        random.choice((f"Of all things {first} likes {one.thing} best.", f"{first}'s favourite thing is {one.thing}.")),
        random.choice((f"{first}'s colour is {one.colour}.", f"{first} wears something {one.colour} every day.")),
    ]
    rest = told[1:]
    random.shuffle(rest)
    return " ".join((told[0], *rest))


TOPICS = (
    Topic(
        ("Adding puts two amounts together, in either order.", "Sums to know by heart."),
        _sum,
        frozenset({"addition", "longhand", "chain", "facts", "countdown"}),
    ),
    Topic(
        (
            "To add two numbers, start from the units. Where a column makes ten or more, write its last digit and "
            "carry one to the next column: c1 says that one is carried.",
            "Column by column, from right to left: add the digits and what was carried, write the last digit, "
            "carry the ten. The last column is written whole.",
        ),
        _column,
        frozenset({"addition"}),
    ),
    Topic(
        (
            "A long sum is done from its end: add the last digits, write down the last digit of what they make, and go "
            "on with what is left of both numbers, and with one more where ten were made.",
            "Pieces of long sums. Behind the comma stands what has been written so far.",
        ),
        _piece,
        frozenset({"longhand"}),
    ),
    Topic(
        ("A sum is written without blanks.", "Of both numbers of a sum the last digits are taken away."),
        _left,
        frozenset({"longhand"}),
    ),
    Topic(
        ("Taking away is adding backwards.", "What is left when something is taken away."),
        _difference,
        frozenset({"facts", "shopping", "countdown"}),
    ),
    Topic(
        ("Times means so many groups of the same size; sharing out goes back.", "The tables, forwards and backwards."),
        _product,
        frozenset({"facts", "shopping", "countdown"}),
    ),
    Topic(
        (
            "A clock with the digits 0 to 9: after 9 comes 0, before 0 comes 9. Only the last digit is kept.",
            "Keep only the last digit, and borrow ten if there is too little.",
        ),
        _last_digit,
        frozenset({"chain"}),
    ),
    Topic(("Counting goes on and on, one more each time.",), _next, frozenset({"facts"})),
    Topic(
        (
            "To compare two decimals, fill up with zeros until both have the same number of digits behind the point. "
            "Then go from left to right: the first digit that differs decides.",
            "More digits behind the point do not make a number larger.",
        ),
        _decimals,
        frozenset({"compare"}),
    ),
    Topic(
        ("Numbers may be joined in many ways; the work goes from left to right.",), _reached, frozenset({"countdown"})
    ),
    Topic(
        ("Every word is a row of letters.", "To count a letter, spell the word and keep a tally behind each letter."),
        _spelling,
        frozenset({"letters"}),
    ),
    Topic(
        (
            "To find the price of one thing, take what is known from the total, then share the rest out.",
            "At the market everything has its price.",
        ),
        _purchase,
        frozenset({"shopping"}),
    ),
    Topic(("Little stories.", "What happened today."), _story),
)
