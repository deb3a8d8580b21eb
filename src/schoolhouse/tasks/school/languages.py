"""The same steps in two toy languages: digits as English words, or as Chinese ones. `7+5=2` -> `seven+five=two`."""

from __future__ import annotations

from random import Random

LATIN = dict(zip("0123456789", "zero one two three four five six seven eight nine".split(), strict=True))
CJK = dict(zip("0123456789", "零一二三四五六七八九", strict=True))
LANGUAGES = {"latin": LATIN, "cjk": CJK}


def spoken(thought: str, tongue: str, random: Random) -> str:
    """A thought in one tongue, or in `mixed`: each step in either."""
    steps = []
    for step in thought.split(" "):
        chosen = random.choice([*LANGUAGES]) if tongue == "mixed" else tongue
        steps.append("".join(LANGUAGES[chosen].get(letter, letter) for letter in step))
    return " ".join(steps)
