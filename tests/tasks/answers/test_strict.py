"""The strict comparison, which published claims rest on."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.answers.numbers import MAX_NUMBER_CHARS
from schoolhouse.tasks.answers.strict import Number, normalize_words, parse_number, strict_compare


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        ("-7", -7),
        ("+7", 7),
        ("\u22127", -7),
        ("- 7", -7),
        ("007", 7),
        ("1,234", 1234),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1{,}234", 1234),
        (r"1,\!234", 1234),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("5.0", 5),
        ("1.5.", Fraction(3, 2)),
        ("1e3", 1000),
        ("1.5E-2", Fraction(3, 200)),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("6 / 8", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"\dfrac34", Fraction(3, 4)),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        ("$5", 5),
        (r"\$5", 5),
        ("$5$", 5),
        ("$-5$", -5),
        ("-$5", -5),
        (r"$\$5$", 5),
        (r"\(5\)", 5),
        ("$$5$$", 5),
        (r"\text{5}", 5),
        ("x=5", 5),
        ("x = -5", -5),
    ],
)
def test_literal_numbers_are_parsed_exactly(text: str, value: Fraction | int) -> None:
    assert parse_number(text) == Number(Fraction(value))


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-", ".", "$", "%", "e5", "five", "5 cm", "1,23", "12,34", "1,2345", "1 1/2", r"1\frac{1}{2}", "1/0",
        r"\frac{1}{0}", "--5", "5-", "5..", "5,", "3+4", r"17\times 23", "17*23", "2^3", r"\sqrt{4}", "5!", "1e9999",
        "0x10", "1_000", "inf", "nan", "٣", "５", "²", "½", "(5)", "5 or 6", "5/2/1", "$5$6", "$5 and $6", "1.2.3",
        "==5", "x=y=5", "9" * (MAX_NUMBER_CHARS + 1),
    ],
)  # fmt: skip
def test_nothing_else_is_a_literal_number(text: str) -> None:
    assert parse_number(text) is None


@given(st.integers(), st.integers(-(10**9), 10**9))
def test_integers_are_equal_when_they_are(a: int, difference: int) -> None:
    assert strict_compare(f"{a + difference:,}", str(a)).reward == float(difference == 0)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4), st.sampled_from(["{}", "${}", " {} ", "{}."]))
def test_decimals_are_parsed_without_rounding(value, frame: str) -> None:
    text = format(value, "f")
    number = parse_number(frame.format(text))
    assert number is not None
    assert number.value == Fraction(text)


@given(st.fractions(max_denominator=10**6))
def test_fractions_have_many_spellings(value: Fraction) -> None:
    sign = "-" if value < 0 else ""
    tall = rf"{sign}\frac{{{3 * abs(value.numerator)}}}{{{3 * value.denominator}}}"
    assert strict_compare(tall, f"{value.numerator}/{value.denominator}").reward == 1.0


@given(st.text())
def test_parsing_never_fails(text: str) -> None:
    parse_number(text)
    normalize_words(text)
    assert strict_compare(text, "5").reward in (0.0, 1.0)


@pytest.mark.parametrize(
    ("candidate", "reference", "reason"),
    [
        (r"17\times 23", "391", "restates"),
        ("3+4", "7", "restates"),
        (r"\sqrt{49}", "7", "restates"),
        ("2^3", "8", "restates"),
        ("10^{10^{10}}", "5", "restates"),
        ("9" * 100_000, "5", "not a bare number"),
        ("1e999999999", "5", "not a bare number"),
        (r"50\%", "50", "percentage"),
        ("50%", "0.5", "percentage"),
        ("50", r"50\%", "percentage"),
        ("0.333333", "1/3", "another number"),
        ("0.30000000000000004", "0.3", "another number"),
        ("1,2", "12", "not a bare number"),
        ("5 or 6", "5", "not a bare number"),
        ("so 5", "5", "not a bare number"),
        (r"5\text{ thousand}", "5", "restates"),
        (r"10\text{ kg}", r"10\text{ cm}", "unit"),
        (r"5\times 2\text{ cm}", r"10\text{ cm}", "restates"),
        (r"45+45", r"90^\circ", "restates"),
        ("٥", "5", "not a bare number"),
    ],
)
def test_what_only_looks_like_the_number_is_wrong(candidate: str, reference: str, reason: str) -> None:
    verdict = strict_compare(candidate, reference)
    assert verdict.reward == 0.0
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ("0.5", r"\frac{1}{2}"),
        ("1234", "1,234"),
        (r"50\%", "50%"),
        ("1e3", "1000"),
        ("10", r"10\text{ cm}"),
        (r"10 \mathrm{cm}", r"10\text{ cm}"),
        ("90", r"90^\circ"),
        (r"90^{\circ}", r"90^\circ"),
        (r"12\text{ cm}^2", r"12\text{ cm}^{2}"),
    ],
)
def test_the_same_number_is_right(candidate: str, reference: str) -> None:
    assert strict_compare(candidate, reference).reward == 1.0


# ---- words


@pytest.mark.parametrize(
    ("candidate", "reference", "equal"),
    [
        ("10 cm", r"10\text{ cm}", True),
        (r"10\,\text{cm}", r"10\text{ cm}", True),
        ("10 cm", "10 cm", True),
        ("10", "10 cm", True),
        ("90°", r"90^\circ", True),
        ("10 m", r"10\text{ cm}", False),
        ("10 cm", r"10\text{ cm}^2", False),
        ("5 apples", "5", False),
    ],
)
def test_a_unit_has_several_spellings(candidate: str, reference: str, equal: bool) -> None:
    assert strict_compare(candidate, reference).reward == float(equal)


@pytest.mark.parametrize(
    ("candidate", "reference", "equal"),
    [
        ("paris", "Paris", True),
        ("Ice  Cream.", "ice cream", True),
        ("icecream", "ice cream", True),
        (r"\text{Paris}", "Paris", True),
        ("ÜBER", "über", True),
        ("(B)", "B", True),
        (r"\text{(b)}", "B", True),
        ("B.", "(B)", True),
        ("silent", "listen", False),
        ("A or B", "A", False),
        ("not Paris", "Paris", False),
        ("4", "four", False),
        (r"\pi", "pi", False),
    ],
)
def test_words_are_compared_by_their_letters(candidate: str, reference: str, equal: bool) -> None:
    assert strict_compare(candidate, reference).reward == float(equal)
