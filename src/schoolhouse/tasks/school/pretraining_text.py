"""Synthetic text for pretraining: pages about numbers, words, things and invented people.

Facts appear in sentences and in the notation of demonstrations (`4+6+1=11,1c1`). No page contains a held-out problem of
any family. Single steps such as `7+5=12` can be equal to held-out problems of the family `facts` (small sums), because
all demonstrations consist of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from schoolhouse.randomness import python_random
from schoolhouse.tasks.school.addition import ADDITION, column_step, column_steps
from schoolhouse.tasks.school.chain import OPERATIONS, apply_operation
from schoolhouse.tasks.school.compare import COMPARE, comparison_steps, larger_number
from schoolhouse.tasks.school.countdown import COUNTDOWN
from schoolhouse.tasks.school.facts import Fact, fact_key, fact_result, fact_step
from schoolhouse.tasks.school.family import Family, is_held_out, sum_key
from schoolhouse.tasks.school.letters import LETTERS, tally
from schoolhouse.tasks.school.longhand import LONGHAND, longhand_steps
from schoolhouse.tasks.school.shopping import SHOPPING, purchase_key, total_price, with_article
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

_MIN_WORDS, _MAX_WORDS = 60, 160  # of a page; the last sentence may go beyond
_SENTENCE_SHARE = 0.4  # where facts appear as sentences or as steps
_MAX_SUM_DIGITS = 6  # of sums of which single columns are shown
_MAX_FACTOR = 12


@dataclass(frozen=True, slots=True)
class Topic:
    """The topic of a page: its opening sentences, a generator of lines, and the families (kinds of problems) that the
    topic fits.

    A topic that names no family fits all families.
    """

    openings: tuple[str, ...]
    line: Callable[[Random], str]
    families: frozenset[str] = frozenset()


def page(random: Random, families: frozenset[str], seed: int) -> str:
    """Write one page that fits at least one of the families (kinds of problems).

    With the same seed, all pages describe the same invented people.
    """
    fitting = [topic for topic in TOPICS if not topic.families or topic.families & families]
    choice = random.randrange(len(fitting) + 1)
    if choice == len(fitting):
        text, line = "", lambda random: _about_person(random, seed)
    else:
        text, line = random.choice(fitting[choice].openings), fitting[choice].line
    min_words = random.randint(_MIN_WORDS, _MAX_WORDS)
    words = len(text.split())
    lines = [text] if text else []
    while words < min_words:
        lines.append(line(random))
        words += len(lines[-1].split())
    return " ".join(lines)


def _train_instance(family: Family[Any], random: Random, **difficulty: int) -> Any:
    """Draw an instance (one problem) of a family. A held-out problem is never drawn."""
    while True:
        instance = family.sample(random, difficulty)
        if not is_held_out(family.key(instance)):
            return instance


def _sentence_or_steps(random: Random, step: Callable[[Random], str], sentence: Callable[[Random], str]) -> str:
    """Write either a sentence, or several steps as in a thought."""
    if random.random() < _SENTENCE_SHARE:
        return sentence(random)
    return " ".join(step(random) for _ in range(random.randint(2, 6))) + "."


def _sentence(random: Random, draw: Callable[[Random], Fact], wordings: tuple[str, ...]) -> str:
    """Write a sentence about an arithmetic fact that is not held out."""
    while is_held_out(fact_key(fact := draw(random))):
        pass
    _, a, b = fact
    c = fact_result(fact)
    text = random.choice(wordings).format(a=a, b=b, c=c, A=_word(a), B=_word(b), C=_word(c))
    return text[0].upper() + text[1:]


def _word(n: int) -> str:
    return NUMBER_WORDS[n] if n < len(NUMBER_WORDS) else str(n)


# ---- numbers


def _sum(random: Random) -> str:
    def draw(random: Random) -> Fact:
        return "+", random.randrange(10), random.randrange(10)

    wordings = ("{a} and {b} make {c}.", "{A} plus {B} is {C}.", "add {b} to {a} and you have {c}.")
    return _sentence_or_steps(
        random, lambda random: fact_step(draw(random)), lambda random: _sentence(random, draw, wordings)
    )


def _difference(random: Random) -> str:
    def draw(random: Random) -> Fact:
        taken, left = random.randrange(10), random.randrange(10)
        return "-", taken + left, taken

    def step(random: Random) -> str:
        if random.random() < 0.3:
            return fact_step(draw(random))
        paid, left = (random.randint(2, _MAX_FACTOR) * random.randint(1, _MAX_FACTOR) for _ in range(2))
        return f"{paid + left}-{paid}={left}"

    wordings = ("{a} take away {b} leaves {c}.", "{A} minus {B} is {C}.")
    return _sentence_or_steps(random, step, lambda random: _sentence(random, draw, wordings))


def _product(random: Random) -> str:
    def draw(random: Random) -> Fact:
        return "*", random.randint(1, _MAX_FACTOR), random.randint(1, _MAX_FACTOR)

    def step(random: Random) -> str:
        _, a, b = fact = draw(random)
        return fact_step(fact) if random.random() < 0.5 else f"{a * b}/{a}={b}"

    wordings = ("{a} times {b} is {c}.", "{A} times {B} makes {C}.")
    return _sentence_or_steps(random, step, lambda random: _sentence(random, draw, wordings))


def _column(random: Random) -> str:
    def draw(random: Random) -> tuple[str, int]:
        return column_step(str(random.randrange(10)), str(random.randrange(10)), random.randrange(2))

    def sentence(random: Random) -> str:
        if random.random() < 0.5:
            pair = _train_instance(ADDITION, random, digits=random.randint(2, 4))
            return f"{pair[0]} and {pair[1]}: {' '.join(column_steps(*pair))}, so together {sum(pair)}."
        step, carry = draw(random)
        digit = step.rpartition(",")[2][0]
        return f"{step}: write {digit}, {'carry one' if carry else 'nothing to carry'}."

    return _sentence_or_steps(random, lambda random: draw(random)[0], sentence)


def _piece(random: Random) -> str:
    """Write one or two columns of a sum, never all columns of a long sum.

    One third of the examples show the first columns of the sum.
    """
    a, b = _train_instance(LONGHAND, random, digits=random.randint(1, _MAX_SUM_DIGITS))
    steps, opening = longhand_steps(a, b), random.random() < 1 / 3
    at = 0 if opening else random.randrange(len(steps))
    text = " ".join(steps[at : at + random.randint(1, 2)]) + "."
    return f"What is {a} + {b}? {text}" if opening else text


def _left(random: Random) -> str:
    """Write an example of copying a sum, or of removing the last digits of both numbers.

    Copying and removing digits are parts of the solution of a long sum.
    """
    a, b = _train_instance(LONGHAND, random, digits=random.randint(1, _MAX_SUM_DIGITS))
    if random.random() < 0.5 or a < 10:
        return f"What is {a} + {b}? It is written {a}+{b}."
    return f"{a}+{b} without the last digits {a // 10}+{b // 10}."


def _last_digit(random: Random) -> str:
    def step(random: Random) -> str:
        digit, (sign, n) = random.randrange(10), random.choice(OPERATIONS)
        return f"{digit}{sign}{n}={apply_operation(digit, (sign, n))}"

    def sentence(random: Random) -> str:
        digit, (sign, n) = random.randrange(10), random.choice(OPERATIONS)
        action = {"+": f"Add {n} to {digit}", "-": f"Take {n} from {digit}", "*": f"Take {digit} times {n}"}[sign]
        return f"{action}: the hand is at {apply_operation(digit, (sign, n))}."

    return _sentence_or_steps(random, step, sentence)


def _next(random: Random) -> str:
    while is_held_out(fact_key(fact := ("next", random.randrange(99), 1))):
        pass
    a, b = fact[1], fact[1] + 1
    return random.choice((f"After {a} comes {b}.", f"The number after {a} is {b}.", f"Before {b} stands {a}."))


def _decimals(random: Random) -> str:
    pair = _train_instance(COMPARE, random, decimals=random.randint(1, 3))
    high = larger_number(pair)
    low = pair[0] if high == pair[1] else pair[1]
    claim = random.choice(
        (f"{high} is larger than {low}", f"{low} is smaller than {high}", f"{high} is more than {low}")
    )
    return f"{claim}: {' '.join(comparison_steps(pair))}."


def _reached(random: Random) -> str:
    puzzle = _train_instance(COUNTDOWN, random, count=3)
    numbers = ", ".join(map(str, puzzle.numbers))
    return f"{numbers} make {puzzle.target}: {' '.join(COUNTDOWN.recheck(puzzle))}, that is {COUNTDOWN.answer(puzzle)}."


# ---- words and things


def _spelling(random: Random) -> str:
    if random.random() < 0.3:
        word, letter = _train_instance(LETTERS, random, length=0)
        return f"We count {letter} in {word}: {' '.join(tally(word, letter))}."
    word = random.choice(SPELLING_WORDS)
    return f"{word} is spelt {' '.join(word)}."


def _purchase(random: Random) -> str:
    while True:
        n, m, p, q = purchase = SHOPPING.sample(random, {"top": _MAX_FACTOR})
        if not is_held_out(purchase_key(purchase)):
            break
    thing, other = random.sample(list(THINGS), 2)
    total = total_price(purchase)
    both = f"{n} {THINGS[thing]} and {m} {THINGS[other]}"
    return random.choice(
        (
            f"{random.choice(NAMES)} buys {both} for ${total}. "
            f"The {THINGS[other]} at ${q} each cost {m}*{q}={m * q}, "
            f"the {THINGS[thing]} {total}-{m * q}={n * p}, so {with_article(thing)} costs {n * p}/{n}={p}.",
            f"A shop sells {THINGS[thing]} at ${p} and {THINGS[other]} at ${q}. "
            f"{n} {THINGS[thing]} cost {n}*{p}={n * p} and {m} {THINGS[other]} cost {m}*{q}={m * q} dollars.",
        )
    )


def _story(random: Random) -> str:
    while True:
        a, b = random.randint(1, 9), random.randint(1, 9)
        if not is_held_out(sum_key(a, b)) and not is_held_out(fact_key(("-", a + b, b))):
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
    """An invented person, who appears in the pretraining text."""

    name: str
    town: str
    pet: str
    pet_name: str
    thing: str
    colour: str


@lru_cache(maxsize=1024)
def person(seed: int, number: int) -> Person:
    """Return an invented person. The same seed and number always give the same person."""
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
    sentences = [
        random.choice((f"{one.name} lives in {one.town}.", f"In {one.town} lives {one.name}.")),
        random.choice(
            (f"{first} has {one.pet} called {one.pet_name}.", f"{first}'s pet is {one.pet}, {one.pet_name}.")
        ),
        random.choice((f"Of all things {first} likes {one.thing} best.", f"{first}'s favourite thing is {one.thing}.")),
        random.choice((f"{first}'s colour is {one.colour}.", f"{first} wears something {one.colour} every day.")),
    ]
    rest = sentences[1:]
    random.shuffle(rest)
    return " ".join((sentences[0], *rest))


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
