r"""Literal numbers, read exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.answers.numbers import number_fault, read_number


@pytest.mark.parametrize(
    ("text", "value", "form"),
    [
        ("-7", -7, "integer"),
        ("1{,}234", 1234, "integer"),
        (r"11,\! 111,\! 100", 11111100, "integer"),
        ("9 500", 9500, "integer"),
        (r"1\,000", 1000, "integer"),
        ("1,000.99$", Fraction(100099, 100), "decimal"),
        ("0,111", Fraction(111, 1000), "decimal"),
        (r"\frac3{3}", 1, "fraction"),
        (r"\frac{1}2", Fraction(1, 2), "fraction"),
        (r"\frac{1}{-2}", Fraction(-1, 2), "fraction"),
        ("2/(-3)", Fraction(-2, 3), "fraction"),
        (r"\left( \cfrac{1}{3} \right)", Fraction(1, 3), "fraction"),
        ("-1./3", Fraction(-1, 3), "fraction"),
        ("33 1/3", Fraction(100, 3), "mixed"),
        (r"1\frac{1}{2}", Fraction(3, 2), "mixed"),
        ("1 000 4/9", Fraction(9004, 9), "mixed"),
        ("6.02e23", 602 * 10**21, "scientific"),
        (r"6.02\times 10^{23}", 602 * 10**21, "scientific"),
        ("10^{-60}", Fraction(1, 10**60), "power of ten"),
        (r"0.\overline{3}", Fraction(1, 3), "repeating"),
        (r"0.1\overline{6}", Fraction(1, 6), "repeating"),
    ],
)  # fmt: skip
def test_numbers_are_read_exactly(text: str, value: Fraction | int, form: str) -> None:
    number = read_number(text)
    assert number is not None
    assert (number.value, number.form) == (Fraction(value), form)


@pytest.mark.parametrize(
    "text",
    ["", "-", ".", "five", "5 cm", "1,23", "12,34", "1/0", "3+4", r"17\times 23", "2^3", r"\sqrt{4}", "5!", "0x10",
     "inf", "٣", "½", "5 or 6", "1.2.3", "4 5 6", "1 12 2020", "11\n5/6", "11 6/6", "(0,1)", "1e99999", "9" * 1_001],
)  # fmt: skip
def test_nothing_else_is_a_number(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize("text", ["28\\%", "28 percent", "$28$ %", "28 pct", "28%."])
def test_a_percentage_has_several_spellings(text: str) -> None:
    number = read_number(text)
    assert number is not None
    assert number.percent
    assert number.value == 28


def test_a_decimal_comma_is_read_only_where_it_is_asked_for() -> None:
    assert read_number("1000,99") is None
    number = read_number("1000,99", comma=True)
    assert number is not None
    assert number.value == Fraction("1000.99")


@given(st.fractions(max_denominator=10**6))
def test_a_number_has_no_fault_as_itself(value: Fraction) -> None:
    number = read_number(f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value))
    assert number is not None
    assert number.value == value
    assert number_fault(number, number) == ""


@given(st.text(max_size=30))
def test_reading_never_fails(text: str) -> None:
    read_number(text)
    read_number(text, comma=True)
