"""Extracting the final answer and comparing it without math-verify; test_expressions.py has the rest."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.answer_match import (
    MAX_NUMBER_CHARS,
    Number,
    answer_match,
    compare_answers,
    exactly_comparable,
    extract_answer,
    normalize_words,
    parse_number,
    perturb_answer,
)
from schoolhouse.types import Completion


def extracted(text: str) -> str | None:
    return extract_answer(Completion(None, text))[0]


# ---- extracting


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"so \boxed{ 5 } it is.", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a\\b}", r"a\\b"),
        (r"a stray { and \boxed{5}", "5"),
        (r"a stray } and \boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        ("<answer>5</answer>", "5"),
        ("<answer>\n5\n</answer>", "5"),
        ("<answer> <answer>5</answer>", "5"),
        (r"<answer>it is \boxed{5}</answer>", "5"),
        (r"\boxed{5} <answer>5</answer>", "5"),
        (r"\boxed{1{,}000} which is \boxed{1000}", "1000"),
        (r"\boxed{5} or \boxed{5.0}", "5.0"),
        (r"\boxed{Ice cream}. <answer>ice cream</answer>", "ice cream"),
        (r"\boxed{x \boxed{5}", "5"),
        (r"\boxed{1+\boxed{5}}", r"1+\boxed{5}"),
        (r"\boxed{{5}}", "5"),
        (r"I put it in \boxed{}: \boxed{5}", "5"),
    ],
)
def test_the_marked_answer_is_extracted(text: str, answer: str) -> None:
    assert extracted(text) == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no final answer"),
        ("The answer is 5.", "no final answer"),
        (r"\boxed{5", "no final answer"),
        (r"\boxed{\frac{1}{2}", "no final answer"),
        (r"\boxed{5\}", "no final answer"),
        (r"boxed{5}", "no final answer"),
        ("<answer>5", "no final answer"),
        ("</answer>5<answer>", "no final answer"),
        (r"\boxed{}", "empty"),
        (r"\boxed{ }", "empty"),
        (r"\boxed{5} \boxed{6}", "more than one"),
        (r"\boxed{17\times 23} = \boxed{391}", "more than one"),
        (r"\boxed{5} <answer>6</answer>", "more than one"),
        (r"\boxed{5} \boxed{5\%}", "more than one"),
        (r"\boxed{5} \boxed{}", "more than one"),
        (r"<answer>\boxed{5} or \boxed{6}</answer>", "more than one"),
    ],
)
def test_what_marks_no_single_answer_is_refused(text: str, reason: str) -> None:
    answer, actual_reason = extract_answer(Completion(None, text))
    assert answer is None
    assert reason in actual_reason


def test_an_answer_in_the_thought_does_not_count() -> None:
    assert answer_match(Completion(r"it is \boxed{5}", "no answer"), "5").reward == 0.0


def test_a_completion_cut_off_behind_its_answer_is_graded_by_it() -> None:
    assert answer_match(Completion(None, r"\boxed{5} and", complete=False), "5").reward == 1.0
    assert "cut off" in answer_match(Completion(None, r"it is \boxed{5", complete=False), "5").reason


balanced = st.recursive(
    st.text("ab5,. +-$^_", max_size=5),
    lambda inner: st.builds(lambda a, b, c: f"{a}{{{b}}}{c}", inner, inner, inner),
    max_leaves=8,
)


@given(balanced, balanced, balanced)
def test_any_balanced_content_is_extracted_whole(before: str, content: str, after: str) -> None:
    assert extracted(f"{before}\\boxed{{x{content}x}}{after}") == f"x{content}x"


@given(st.lists(st.sampled_from([r"\boxed{", r"\boxed", "{", "}", "\\", "<answer>", "</answer>", "5", " "])))
def test_extraction_never_fails(pieces: list[str]) -> None:
    answer, reason = extract_answer(Completion(None, "".join(pieces)))
    assert (answer is None) == bool(reason)


@pytest.mark.parametrize(
    "piece",
    [r"\boxed{", r"\boxed{5}", "<answer>", "<answer>5</answer>", r"<answer>\boxed{5}</answer>", "{", r"\boxed "],
)
def test_a_long_completion_is_parsed_in_linear_time(piece: str) -> None:
    assert extract_answer(Completion(None, piece * 50_000))[0] in ("5", None)


# ---- numbers


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
    assert compare_answers(f"{a + difference:,}", str(a)).reward == float(difference == 0)


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
    assert compare_answers(tall, f"{value.numerator}/{value.denominator}").reward == 1.0


@given(st.text())
def test_parsing_never_fails(text: str) -> None:
    parse_number(text)
    normalize_words(text)
    assert compare_answers(text, "5").reward in (0.0, 1.0)


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
    verdict = compare_answers(candidate, reference)
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
    assert compare_answers(candidate, reference).reward == 1.0


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
    assert compare_answers(candidate, reference).reward == float(equal)


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
    assert compare_answers(candidate, reference).reward == float(equal)


# ---- expressions are compared in worker processes only


def test_math_verify_is_never_called_in_this_process() -> None:
    assert not exactly_comparable(r"\sqrt{2}")
    with pytest.raises(RuntimeError, match="worker process"):
        compare_answers(r"\sqrt{3}", r"\sqrt{2}")


def test_the_same_spelling_needs_no_math_verify() -> None:
    assert compare_answers("x<5", "x < 5").reward == 1.0


# ---- wrong answers


@given(st.integers() | st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: round(x, 3)))
def test_a_perturbed_number_is_another_number(value: float) -> None:
    text = f"{value:,}"
    if parse_number(text) is None:  # 1e-05
        return
    assert parse_number(perturb_answer(text)) not in (None, parse_number(text))


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [("72", "73"), ("1,239", "1,238"), ("1/9", "1/8"), (r"\frac{0}{5}", r"\frac{1}{5}"), ("50%", "51%"), ("yes", "no"),
     ("False", "True"), ("NO", "YES"), ("Paris", "Parit"), ("z", "y"), (r"\pi", r"1+\pi"), ("x+2", "x+3")],
)  # fmt: skip
def test_a_wrong_answer_is_of_the_same_kind(reference: str, wrong: str) -> None:
    assert perturb_answer(reference) == wrong


def test_a_coarsely_wrong_number_is_far_off() -> None:
    assert perturb_answer("-12.345", coarse=True) == "-22.345"
    assert perturb_answer("0.97", coarse=True) == "1.97"
    assert perturb_answer("exp(x) + C", coarse=True) == "fxp(x) + C"
