"""Translate steps into two toy languages, which write digits as English or Chinese words.

For example, the step `7+5=2` becomes `seven+five=two`.
"""

from __future__ import annotations

from random import Random

LATIN = dict(zip("0123456789", "zero one two three four five six seven eight nine".split(), strict=True))
CJK = dict(zip("0123456789", "零一二三四五六七八九", strict=True))
LANGUAGES = {"latin": LATIN, "cjk": CJK}


def translate(thought: str, language: str, random: Random) -> str:
    """Translate a thought into one toy language. With `mixed`, each step gets a random language."""
    steps = []
    for step in thought.split(" "):
        chosen = random.choice([*LANGUAGES]) if language == "mixed" else language
        steps.append("".join(LANGUAGES[chosen].get(letter, letter) for letter in step))
    return " ".join(steps)
