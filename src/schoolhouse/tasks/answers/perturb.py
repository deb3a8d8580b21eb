"""Make wrong answers that look like a reference, to check that a verifier refuses wrong answers."""

from __future__ import annotations

import re

from schoolhouse.tasks.answers.strict import parse_number


def perturb_answer(reference: str, coarse: bool = False) -> str:
    r"""Return a wrong answer that differs from the reference in one digit, one letter or one word.

    Examples are `72` -> `73`, `1,239` -> `1,238`, `\frac{0}{5}` -> `\frac{1}{5}`, `yes` -> `no`, `Paris` -> `Parit`.
    If `coarse` is true, the first digit or letter is changed instead of the last. An answer with a changed first digit
    is wrong even if a verifier rounds the last digits.
    """
    opposites = {"yes": "no", "true": "false"}
    opposites |= {other: word for word, other in opposites.items()}
    lower = reference.strip().casefold()
    if lower in opposites:
        other = opposites[lower]
        return other.upper() if reference.isupper() else other.capitalize() if reference[:1].isupper() else other
    digits = [match.start() for match in re.finditer("[0-9]", reference)]
    for at in digits if coarse else reversed(digits):
        changed = _replace(reference, at, str(int(reference[at]) + 1) if reference[at] < "9" else "8")
        if parse_number(reference) is None or parse_number(changed) not in (None, parse_number(reference)):
            return changed
    letters = [match.start() for match in re.finditer("[A-Za-z]", reference)]
    if letters and "\\" not in reference:
        at = letters[0 if coarse else -1]
        letter = reference[at]
        return _replace(reference, at, chr(ord(letter) + 1) if letter not in "zZ" else chr(ord(letter) - 1))
    return f"1+{reference}"


def _replace(text: str, at: int, character: str) -> str:
    return text[:at] + character + text[at + 1 :]
