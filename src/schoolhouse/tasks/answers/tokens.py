"""Split a formula into tokens: numbers, commands, letters and signs. Some texts that are not formulas are refused."""

from __future__ import annotations

import re

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch ln log lg exp "
    "max min gcd lcm det Re Im arg sgn".split()
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"|(?P<command>\\[a-zA-Z]+)|(?P<letters>[a-zA-Z]+)|(?P<other>\\[{}|]|\S))"
)
_WORDS = FUNCTIONS | {
    "sqrt",
    "pi",
    "infinity",
    "inf",
    "infty",
    "oo",
    "arcsinh",
    "asin",
    "acos",
    "atan",
    "theta",
    "alpha",
}
_ALIASES = {"infinity": "infty", "inf": "infty", "oo": "infty", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_ALIASES |= {"sqrt": "sqrt", "lg": "log", "arcsinh": "arcsinh"}


class NotAFormula(ValueError):
    """This exception is raised for a text that is not a formula of our grammar."""


def tokens_of(text: str) -> list[str]:
    tokens: list[str] = []
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise NotAFormula(text[at:])
        spaced = at > 0 and text[at] == " "
        at = match.end()
        if match["number"]:
            if tokens and not spaced and re.fullmatch(r"[a-zA-Z]'*", tokens[-1]):
                raise NotAFormula("digits behind a letter")
            if re.match("0[0-9]", match["number"]) or (match["number"] == "0" and text[at : at + 1].isalpha()):
                raise NotAFormula("a number that starts with 0")  # 007, 0x1F
            tokens.append(match["number"])
        elif word := match["letters"]:
            tokens += _split_letters(word)
        else:
            tokens.append(match["command"] or match["other"])
    return tokens


def _split_letters(word: str) -> list[str]:
    """Split letters into tokens. For example, `xy` is a product, `AB` is one name, and `sin` is a function; words are
    refused."""
    if word in _WORDS:
        return ["\\" + _ALIASES.get(word, word)]
    if len(word) > 1 and word.isupper() and len(word) <= 5:
        return ["@" + word]
    if len(word) <= 3 or (len(word) == 4 and len(set(word)) == 4 and not re.search("[aeiou]", word)):
        return list(word)
    for name in sorted(FUNCTIONS | {"sqrt", "pi"}, key=len, reverse=True):
        if word.startswith(name) and len(word) - len(name) == 1:
            return ["\\" + name, word[-1]]
    raise NotAFormula(f"the word {word!r}")
