"""Which is larger, 9.11 or 9.9? Filled up to equal decimals, then digit by digit: `9.11 9.90 9=9 1<9`."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from schoolhouse.tasks.school.family import Difficulty, Family

Pair = tuple[str, str]
"""Two different numbers with decimals, as they are shown."""

_LARGEST_WHOLE = 20
_SAME_WHOLE = 0.75  # the share of pairs that differ behind the point only

_WORDINGS = ("Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?")


def padded(pair: Pair) -> Pair:
    """Both with as many decimals as the longer one: ("9.11", "9.9") -> ("9.11", "9.90")."""
    a, b = pair
    longest = max(len(a) - a.index("."), len(b) - b.index("."))
    return a + "0" * (longest - len(a) + a.index(".")), b + "0" * (longest - len(b) + b.index("."))


def sign_between(x: int, y: int) -> str:
    """`<`, `=` or `>`."""
    return "<" if x < y else ">" if x > y else "="


def comparison(pair: Pair) -> list[str]:
    """The filled-up pair, the whole parts, then decimals until they differ: ["9.11 9.90", "9=9", "1<9"]."""
    a, b = padded(pair)
    steps = [f"{a} {b}"]
    for x, y in zip(_parts(a), _parts(b), strict=True):
        sign = sign_between(int(x), int(y))
        steps.append(f"{x}{sign}{y}")
        if sign != "=":
            break
    return steps


def _parts(number: str) -> list[str]:
    """The whole part, then one decimal after another: "12.34" -> ["12", "3", "4"]."""
    whole, _, decimals = number.partition(".")
    return [whole, *decimals]


def pair_key(pair: Pair) -> str:
    """The key of a pair, the same in either order."""
    return "compare " + " ".join(sorted(pair))


def larger(pair: Pair) -> str:
    """The larger one, as it is shown."""
    return pair[0] if comparison(pair)[-1].count(">") else pair[1]


def _make(random: Random, dials: Mapping[str, int]) -> Pair:
    while True:
        whole = random.randrange(_LARGEST_WHOLE + 1)
        other = whole if random.random() < _SAME_WHOLE else random.randrange(_LARGEST_WHOLE + 1)
        pair = f"{whole}.{_decimals(random, dials)}", f"{other}.{_decimals(random, dials)}"
        first, second = padded(pair)
        if first != second:
            return pair


def _decimals(random: Random, dials: Mapping[str, int]) -> str:
    """One digit or more, the last not 0."""
    count = random.randint(1, dials["decimals"])
    return f"{10 * random.randrange(10 ** (count - 1)) + random.randint(1, 9):0{count}d}"


def _ask(pair: Pair, random: Random) -> str:
    return random.choice(_WORDINGS).format(a=pair[0], b=pair[1])


def _slip(step: str, random: Random) -> str:
    if " " in step:
        return step[:-1] + str((int(step[-1]) + random.randint(1, 9)) % 10)
    sign = next(each for each in step if each in "<=>")
    return step.replace(sign, random.choice("<=>".replace(sign, "")))


COMPARE = Family[Pair](
    name="compare",
    pays=False,
    dials={"decimals": Difficulty("most digits behind the point", 2, 1, 8)},
    make=_make,
    key=pair_key,
    ask=_ask,
    answer=larger,
    steps=lambda pair, random: comparison(pair),
    recheck=lambda pair: comparison((pair[1], pair[0])),
    corrupt_step=_slip,
)
