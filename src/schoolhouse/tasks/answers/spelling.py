r"""Normalize the spelling of an answer: remove LaTeX markup that does not change the meaning.

\left( \dfrac{1}{2} \right)  ->  (\frac{1}{2})
$1\,000$                     ->  1000
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SIGNS = {
    **{"\u2212": "-", "\u2013": "-", "\u2010": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot "},
    **{"\u00f7": "/", "\u221e": r"\infty ", "\u03c0": r"\pi ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne "},
    **{"\u222a": r"\cup ", "\u2229": r"\cap ", "\u2205": r"\emptyset ", "\u00b0": r"^\circ ", "\u221a": r"\sqrt "},
    **{"\u00b2": "^2", "\u00b3": "^3", "\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u00b1": r"\pm "},
    **{"\u2248": r"\approx ", "\u2208": r"\in ", "\u211d": r"\mathbb{R}", "\u3002": ".", "\u00a0": " ", "\u202f": " "},
}
"""Signs that have a LaTeX command, and signs with several code points."""

_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "frac"),
    **dict.fromkeys(("leq", "leqslant", "leqq"), "le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), "ge"),
    **{"neq": "ne", "varnothing": "emptyset", "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}", "mid": "|"},
    **{"vert": "|", "lvert": "|", "rvert": "|", "lbrack": "[", "rbrack": "]", "degree": r"^\circ", "infin": "infty"},
    **{"ast": "*", "dbinom": "binom", "tbinom": "binom", "cdots": "dots", "ldots": "dots", "land": r"\text{and}"},
    **{"lor": r"\text{or}", "simeq": "approx", "doteq": "approx", "varphi": "phi", "varepsilon": "epsilon"},
    **{"rm": "", "bf": "", "it": "", "displaystyle": "", "textstyle": "", "limits": "", "nolimits": "", "hfill": ""},
    **dict.fromkeys(("left", "right", "bigl", "bigr", "Bigl", "Bigr", "big", "Big", "bigg", "Bigg", "biggl"), ""),
    **{"biggr": "", "middle": "", "quad": " ", "qquad": " ", "newline": "\n", "colon": ":", "dollar": ""},
}
"""LaTeX commands, and the commands that replace them. Commands that change only the look have no replacement."""

_TEXT = r"\\(?:text(?:normal|rm|bf|it|sf|tt)?|mathrm|mbox|hbox|operatorname\*?|mathop)\s*"
_FONT = r"\\(?:mathbf|mathit|mathsf|mathcal|boldsymbol|bm|mathnormal|mathord|displaylines|ensuremath)\s*"


_PLAIN = re.compile(r"[A-Za-z0-9 .,:/()+=^_-]*")
"""Text without any markup."""


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """Remove markup that does not change the meaning. Words in \\text{...} and spaces between words stay."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return _without_frame(re.sub(r"\s*\b(?:per ?cent(?:age)?|pct)$", "%", re.sub(r"[ \t]+", " ", text)))
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z({\[%$,;!])", r"\\", text)  # a backslash that was escaped twice
    for sign, command in _SIGNS.items():
        if sign in text:
            text = text.replace(sign, command)
    text = re.sub(r"\\(?:phantom|hspace|vspace|label|tag)\*?\s*\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(?:left|right)\s*\.", "", text)
    text = re.sub(r"\\\$", "$", text).replace("\\%", "%").replace("\\&", "&").replace("\\#", "#")
    text = re.sub(r"(?<!\\)\\[()]|(?<!\\)\\[\[\]](?!\s*-?[\d.]+\s*(?:pt|em|ex|cm)\])", " ", text)
    text = _without_dollars(text).strip()
    text = re.sub(r"\{\s*,\s*\}|,\s*\\!\s*", ",", text)
    text = re.sub(r"(?<=[0-9])\\[,;:](?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"(?<!\\)\\!", "", text)
    text = re.sub(r"(?<!\\)(?:\\[,;: >]|~)", " ", text)
    text = re.sub(r"\\([a-zA-Z]+)", _rename, text)
    text = re.sub(rf"{_TEXT}\{{", r"\\text{", text)
    text = re.sub(rf"{_FONT}\{{([^{{}}]*)\}}", r"{\1}", text)
    text = re.sub(r"\\text\{\s*([ei])\s*\}", r" \1 ", text)
    text = re.sub(r"\\text\{d\}(?=\s*[a-zA-Z])", " d ", text)
    text = re.sub(r"\\text\{([^{}]*)\}", lambda match: "\\text{" + match[1].strip() + "}", text)
    text = re.sub(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 ", text)
    text = (
        text.replace("!=", r"\ne ")
        .replace("<=", r"\le ")
        .replace(">=", r"\ge ")
        .replace("**", "^" if "^" not in text else "**")
    )
    text = re.sub(r"\\\{\s*\\\}", r"\\emptyset ", text)
    text = re.sub(r"\s*(?:\\text\{(?:percent|per cent|percentage|pct)\}|\bper ?cent(?:age)?\b|\bpct\b)$", "%", text)
    text = re.sub(r"[ \t]+", " ", text).strip()
    return _without_frame(text)


def _rename(match: re.Match[str]) -> str:
    name = match[1]
    if name not in _COMMANDS:
        return match[0]
    new = _COMMANDS[name]
    return f"\\{new}" if new.isalpha() else new


def _without_dollars(text: str) -> str:
    """Replace each `$` by a space, because `$` marks mathematics or dollars, and both marks can be left out."""
    return re.sub(r"\$+", " ", text)


def _without_frame(text: str) -> str:
    """Remove quotes, stars and braces around the whole text, and a full stop at the end."""
    while True:
        old = text
        text = text.strip()
        if text.endswith((".", ";", ",")) and not text.endswith(("..", "\\;", "\\,")) and len(text) > 1:
            text = text[:-1].rstrip()
        for left, right in (('"', '"'), ("'", "'"), ("``", "''"), ("**", "**"), ("`", "`")):
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
                inner = text[len(left) : -len(right)]
                text = inner if left not in inner and right not in inner else text
        if text.startswith("{") and _closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if match := re.fullmatch(r"\\text\{([^{}]*)\}", text):
            text = match[1]
        if text == old:
            return text


def _closing(text: str, start: int) -> int:
    """Return the index of the brace that closes the brace at `start`, or -1 if no brace closes it."""
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return at
        at += 1
    return -1


@lru_cache(maxsize=4096)
def spelling(text: str) -> str:
    """Return a text that is equal for two answers with the same spelling.

    A space counts only between two letters or digits, so `4 5` differs from `45`. Upper and lower case letters differ.
    For text without formulas, use the function `words`.
    """
    text = clean(text)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"([_^])\{([0-9]+|[a-zA-Z])\}", r"\1\2 ", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()
    return re.sub(r"(?<![^\W_]) | (?![^\W_])", "", text)


def words(text: str) -> str:
    """Return the spelling of a text that is not a formula, in lower case and without quotes.

    A full stop after a letter, as in `U.S.` or `p.m.`, is removed.
    """
    text = spelling(text).casefold()
    return re.sub(r"(?<=[^\W\d_])\.", "", re.sub(r"[\"'`]", "", text)).strip()


def plain_words(text: str) -> str | None:
    """Return a text of words in lower case and without spaces, or None if the text has other signs than letters and
    hyphens."""
    text = words(text)
    return text.replace(" ", "") if re.fullmatch(r"[^\W\d_]+(?:[\s-]+[^\W\d_]+)*", text) else None
