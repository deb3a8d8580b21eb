r"""Read the unit of an amount, as in `10\text{ cm}^2`, `5cm`, `45 degrees`, `6 \mathrm{mi}/\mathrm{hr}` and `€5`.

A single letter in a formula, or without a space after a number (`4t`), is a variable and never a unit.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

Units = Literal["optional", "strict", "lenient"]
"""The policy for units. With `optional`, a candidate can leave out the unit. With `strict`, a candidate must have the
unit. With `lenient`, a candidate can leave out the unit, and can add a unit that the reference does not have."""

_NAMES = {
    "degree": "degrees deg circ",
    "meter": "m meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters millimetre millimetres",
    "km": "kilometer kilometers kilometre kilometres",
    "foot": "ft feet",
    "inch": "in inches",
    "yard": "yd yards yds",
    "mile": "mi miles",
    "second": "s sec secs seconds",
    "minute": "min mins minutes",
    "hour": "h hr hrs hours",
    "day": "d days",
    "week": "wk weeks",
    "month": "mo months",
    "year": "yr yrs years",
    "g": "gram grams",
    "kg": "kilogram kilograms kgs",
    "mg": "milligram milligrams",
    "pound": "lb lbs pounds",
    "ounce": "oz ounces",
    "l": "L liter liters litre litres",
    "ml": "mL milliliter milliliters millilitre millilitres",
    "gallon": "gal gallons",
    "dollar": "dollars USD",
    "cent": "cents",
    "euro": "euros EUR \u20ac",
    "\u00a3": "GBP sterling",
    "yen": "JPY \u00a5",
    "mile/hour": "mph",
    "N": "newton newtons",
    "J": "joule joules",
    "W": "watt watts",
    "V": "volt volts",
    "A": "ampere amperes amp amps",
    "Hz": "hertz",
    "radian": "radians rad rads",
    "unit": "units",
}
"""The normal spelling of each unit, and its other spellings."""

_UNIT_OF = {spelling: name for name, spellings in _NAMES.items() for spelling in (name, *spellings.split())}
_ATOM = r"(?:\\text\s*\{[^{}]*\}|(?<![\\A-Za-z])[A-Za-z]{2,}\.?|\^\s*\{?\s*\\circ\s*\}?\s*(?:C|F|\\text\{[CF]\})?)"
_RAISED = r"(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9]))?"
_LETTER = r"(?:\\text\s*\{[^{}]*\}|[A-Za-z])"
_TAIL = re.compile(
    rf"(?P<space>\s*)(?P<unit>{_ATOM}{_RAISED}(?:\s*(?:/|\\cdot|\s)\s*(?:{_ATOM}|{_LETTER}(?![A-Za-z])){_RAISED})*)$"
)
_LETTERS = re.compile(rf"(?P<space>\s*)(?P<unit>(?<![\\A-Za-z])[A-Za-z]{_RAISED}(?:\s*/\s*{_LETTER}{_RAISED})?)$")
_SPEED = re.compile(rf"(?P<space>\s)(?P<unit>(?:m|km|cm|mi|ft)\s*/\s*(?:s|h|hr|min){_RAISED})$")
_CURRENCY = re.compile(r"^(?P<sign>[-+]?)\s*(?P<unit>[\u20ac\u00a3\u00a5])\s*|\s*(?P<after>[\u20ac\u00a3\u00a5])$")
_NOT_UNITS = {"and", "or", "if", "is", "for", "then", "where", "when", "to", "not", "but", "with", "only", "sin", "cos"}
_NOT_UNITS |= {"tan", "log", "ln", "pi", "sqrt", "exp", "frac", "mod", "else", "otherwise", "so", "because", "thus"}
_NOT_UNITS |= {"thousand", "million", "billion", "trillion", "hundred", "dozen", "half", "base", "cot", "sec", "csc"}
_FIRST_COMMAND = re.compile(r"\\[a-zA-Z]+$")


class Split(NamedTuple):
    """The two parts of an amount: the amount without its unit, and the unit. If the amount has no unit, `unit` is an
    empty text."""

    amount: str
    unit: str


def split_unit(text: str, letters: bool = False) -> Split:
    """Split a cleaned answer into the amount and the unit. The unit gets its normal spelling.

    letters  is True if a single letter can be the unit (`10 m`), because the other answer has such a unit.
    """
    if match := _CURRENCY.search(text):
        rest = (match["sign"] or "") + text[match.end() :] if match["unit"] else text[: match.start()]
        return Split(rest.strip(), _UNIT_OF.get(match["unit"] or match["after"], match["unit"] or match["after"]))
    match = _TAIL.search(text) if len(text) <= 300 else None
    match = _SPEED.search(text) or match
    if match is None and letters:
        match = _LETTERS.search(text)
    if match is None or not match.start():
        return Split(text, "")
    amount, raw = text[: match.start()].rstrip(), match["unit"]
    if _FIRST_COMMAND.search(text[: match.start("unit")]) and not raw.startswith("\\"):
        return Split(text, "")  # `\sin`, `\alpha`
    spelled = re.findall(r"\\text\s*\{([^{}]*)\}|([A-Za-z]{2,})", raw)
    if any(word in _NOT_UNITS for group in spelled for part in group for word in part.lower().split()):
        return Split(text, "")
    glued = not match["space"] and re.match("[A-Za-z]", raw)
    plain = re.fullmatch(r"[A-Za-z]+", raw)
    if glued and plain and raw not in _UNIT_OF and len(raw) < 4:
        return Split(text, "")  # `5xy`, `AB`
    if plain and not re.search(r"[0-9\\]", amount):
        return Split(text, "")  # a name: `C Cecile`
    if plain and raw not in _UNIT_OF and len(raw) < 3 and not re.search("[0-9]$", amount):
        return Split(text, "")
    return Split(amount, unit_name(raw))


@lru_cache(maxsize=1024)
def unit_name(raw: str) -> str:
    """Return the normal spelling of a unit: `mile/hour` for `mph` and for `\\text{ miles } / \\text{hr}`."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", raw)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " degree ", text)
    text = re.sub(r"\\cdot", " ", text).replace("~", " ").replace(".", "")
    text = re.sub(r"\bper\b", "/", text)
    text = re.sub(r"\s*\^\s*\{?\s*(-?[0-9])\s*\}?", r"^\1", text)
    text = re.sub(r"\b(?:square|sq)\s+([A-Za-z]+)", r"\1^2", text)
    text = re.sub(r"\b(?:cubic|cu)\s+([A-Za-z]+)", r"\1^3", text)
    parts = re.split(r"(/)", text)
    return "".join(part if part == "/" else " ".join(_one_unit(word) for word in part.split()) for part in parts)


def _one_unit(word: str) -> str:
    name, caret, power = word.partition("^")
    known = _UNIT_OF.get(name) or _UNIT_OF.get(name.lower())
    if not known:
        known = name.casefold() if len(name) > 2 else name
        known = known[:-1] if len(known) > 3 and known.endswith("s") and not known.endswith("ss") else known
    return known + caret + power


def unit_fault(candidate: str, reference: str, units: Units = "optional") -> str:
    """Return the reason why the unit of a candidate is wrong, or "" if the unit is accepted."""
    if candidate == reference:
        return ""
    if candidate and not reference:
        return "" if units == "lenient" else "a unit that was not asked for"
    if not candidate:
        return "the unit is missing" if units == "strict" else ""
    return "another unit"
