"""Units behind amounts, and the choices of multiple-choice questions."""

import pytest

from schoolhouse.tasks.answers.choices import read_choice
from schoolhouse.tasks.answers.spelling import clean
from schoolhouse.tasks.answers.units import split_unit


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        (r"10\text{ cm}^2", "10", "cm^2"),
        ("5cm", "5", "cm"),
        ("45 degrees", "45", "degree"),
        (r"45^\circ", "45", "degree"),
        (r"$6.608 \mathrm{mi} / \mathrm{hr}$", "6.608", "mile/hour"),
        ("60 mph", "60", "mile/hour"),
        ("60 miles per hour", "60", "mile/hour"),
        ("€5", "5", "euro"),
        ("12 square feet", "12", "foot^2"),
        (r"3\pi \text{ cm}^3", r"3\pi", "cm^3"),
        ("10 m/s", "10", "meter/second"),
        ("4t", "4t", ""),
        ("6 m", "6 m", ""),
        ("5xy", "5xy", ""),
        (r"\frac{1}{m} t", r"\frac{1}{m} t", ""),
        ("C Cecile", "C Cecile", ""),
        (r"2\sin x", r"2\sin x", ""),
        ("5 thousand", "5 thousand", ""),
        (r"5 \text{ if } n \text{ is odd}", r"5 \text{if} n \text{is odd}", ""),
    ],
)
def test_a_unit_is_split_from_its_amount(text: str, amount: str, unit: str) -> None:
    assert split_unit(clean(text)) == (amount, unit)


def test_a_letter_is_a_unit_only_where_the_other_answer_has_it() -> None:
    assert split_unit("6 m", letters=True) == ("6", "meter")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B)", "B"),
        ("B.", "B"),
        ("B. Paris", "B"),
        ("(B) Paris", "B"),
        ("B: Paris", "B"),
        (r"\textbf{(B)}\ 12", "B"),
        (r"\text{(B)}", "B"),
        ("Option B", "B"),
        ("A or B", None),
        ("B. Paris or C. Rome", None),
        ("Paris", None),
        ("B Paris", None),
        ("x", None),
        ("U.S.", None),
    ],
)
def test_a_choice_is_read_from_its_letter(text: str, letter: str | None) -> None:
    choice = read_choice(text)
    assert (choice.letter if choice else None) == letter
