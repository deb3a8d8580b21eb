r"""Grading final answers: the issue's kinds, and the pairs of other packages' suites with the policies that differ."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import math_like
from schoolhouse.tasks.answer_match import answer_match, exactly_comparable
from schoolhouse.tasks.answers.compare import Policy
from schoolhouse.tasks.answers.grade import compare_answers, read_reference
from schoolhouse.tasks.answers.strict import strict_compare
from schoolhouse.types import Completion

PAIRS = [json.loads(line) for line in Path(__file__).with_name("pairs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['candidate'][:30]!r} for {pair['reference'][:30]!r}")
def test_the_pairs_get_the_expected_reward(pair: dict) -> None:
    verdict = compare_answers(pair["candidate"], pair["reference"], pair.get("question", ""))
    assert verdict.reward == pair["expected"], verdict.reason


def test_no_changed_reference_is_accepted() -> None:
    accepted = [pair for pair in math_like.wrong_pairs(1_000) if compare_answers(pair[1], pair[0]).reward]
    assert accepted == []


def test_no_formula_of_the_question_is_accepted() -> None:
    cases = list(math_like.copied_questions(500))
    assert [case for case in cases if compare_answers(case[2], case[1], case[0]).reward] == []


def test_every_reference_accepts_itself() -> None:
    references = {reference for reference, _ in math_like.wrong_pairs(600, seed=1)}
    assert [reference for reference in references if compare_answers(reference, reference).reward != 1.0] == []


def test_a_reference_that_stands_in_the_question_is_right() -> None:
    question = "Which is larger, $\\sqrt{2}$ or $\\frac{3}{2}$? Is it 1.5?"
    assert compare_answers("\\frac{3}{2}", "\\frac{3}{2}", question).reward == 1.0
    assert compare_answers("\\dfrac32", "\\frac{3}{2}", question).reward == 1.0
    assert compare_answers("1.5", "\\frac{3}{2}", question).reward == 0.0


@pytest.mark.parametrize(
    ("reference", "candidate", "rewards"),
    [
        ("10\\text{ cm}", "10", (1.0, 0.0, 1.0)),
        ("10\\text{ cm}", "10 cm", (1.0, 1.0, 1.0)),
        ("10\\text{ cm}", "10 kg", (0.0, 0.0, 0.0)),
        ("10", "10 cm", (0.0, 0.0, 1.0)),
        ("8\\pi\\text{ cm}^2", "8\\pi", (1.0, 0.0, 1.0)),
    ],
)
def test_units_are_a_stated_policy(reference: str, candidate: str, rewards: tuple[float, ...]) -> None:
    policies = (Policy("optional"), Policy("strict"), Policy("lenient"))
    assert tuple(compare_answers(candidate, reference, policy=policy).reward for policy in policies) == rewards


def test_one_of_several_references_is_enough() -> None:
    assert compare_answers("NYC", ["New York City", "NYC"]).reward == 1.0
    assert compare_answers("LA", ["New York City", "NYC"]).reward == 0.0
    with pytest.raises(ValueError, match="empty"):
        compare_answers("5", [])


@pytest.mark.parametrize(
    ("reference", "comparison"),
    [
        ("72", "number"),
        ("10 cm", "number"),
        ("2021-03-04", "text"),
        ("Paris", "text"),
        ("B", "choice"),
        ("x+1", "formula"),
        ("\\{1,2\\}", "formula"),
        ("\\int_0^1 f(x) dx", "math-verify"),
        ("\\begin{cases} ? \\\\", "text"),
        ("5 \\text{ if } n \\text{ is odd}", "text"),
    ],
)
def test_the_kind_of_comparison_is_known_when_a_task_opens(reference: str, comparison: str) -> None:
    assert read_reference(reference).comparison == comparison
    assert exactly_comparable(reference) == (comparison in ("number", "text", "choice"))


def test_math_verify_is_never_called_in_this_process() -> None:
    with pytest.raises(RuntimeError, match="worker process"):
        compare_answers("\\int_0^2 f(x) dx", "\\int_0^1 f(x) dx")


def test_the_reason_says_what_is_wrong() -> None:
    reasons = {
        ("17\\times 23", "391"): "restates",
        ("\\frac{4}{6}", "\\frac{2}{3}"): "lowest terms",
        ("50\\%", "50"): "percentage",
        ("10 kg", "10\\text{ cm}"): "another unit",
        ("1,2", "(1,2)"): "brackets",
        ("1,2,3", "1,2"): "3 values instead of 2",
        ("x" * 5_000, "x+1"): "longer than",
        ("\\sqrt{8}", "2\\sqrt{2}"): "simplify the root",
    }
    for (candidate, reference), reason in reasons.items():
        verdict = compare_answers(candidate, reference)
        assert verdict.reward == 0.0
        assert reason in verdict.reason


latex = st.lists(
    st.sampled_from(
        [r"\frac", r"\sqrt", "{", "}", "(", ")", "[", "]", "^", "_", "1", "23", "x", "-", "+", "=", ",", " ",
         r"\text{cm}", r"\pi", "|", "!", "<", r"\\", r"\pm", "%", "$",
         r"\begin{pmatrix}", r"\end{pmatrix}", "&", "and", ".", r"\{"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=200)
@given(latex, latex)
def test_any_text_is_graded_without_an_error(candidate: str, reference: str) -> None:
    assert compare_answers(candidate, reference).reward in (0.0, 1.0)


@settings(max_examples=200)
@given(latex)
def test_any_text_equals_itself(text: str) -> None:
    assert compare_answers(text, text).reward == 1.0


@given(st.integers(), st.integers(-(10**9), 10**9))
def test_whole_numbers_are_equal_when_they_are(a: int, difference: int) -> None:
    assert compare_answers(f"{a + difference:,}", str(a)).reward == float(difference == 0)


@given(st.integers(-999, 999), st.integers(2, 999), st.integers(1, 9))
def test_a_fraction_must_be_in_lowest_terms(top: int, bottom: int, factor: int) -> None:
    from math import gcd

    shared = gcd(top, bottom)
    reference = f"{top // shared}/{bottom // shared}"
    verdict = compare_answers(f"\\frac{{{top * factor}}}{{{bottom * factor}}}", reference)
    whole = abs(top) == abs(bottom)
    assert verdict.reward == float(whole or (shared == factor == 1))


@pytest.mark.parametrize(
    "candidate",
    ["10^{10^{10}}", "9^{9^{9^{9}}}", "(10^{10})!", "\\sqrt{" * 500, "(" * 1_000 + ")" * 1_000, "x^{" * 300 + "}" * 300,
     "1+" * 900 + "1", "2!" + "!" * 1_500, "\\frac{1}" * 200, "{" * 1_900, ",".join("1234"), "," * 1_900, "|" * 1_900,
     "\\text{" * 300, "1 " * 900, "\\sin " * 300 + "x", "e^{e^{e^{20}}}", "\\binom{10^9}{10^8}", "=" * 1_900],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_hostile_answer_is_wrong_at_once(candidate: str) -> None:
    import time

    start = time.process_time()
    for reference in ("\\sqrt{2}", "7", "x+1", "(1,2)", "x=3"):
        assert compare_answers(candidate, reference).reward == 0.0
    assert time.process_time() - start < 2.0


def test_the_answers_of_gsm8k_agree_with_the_strict_comparison() -> None:
    """Whole numbers, as the answers of GSM8K are: the new grader decides as the strict one does."""
    references = ["72", "10", "1,400", "-3", "0", "2.5"]
    candidates = ["72", "72.0", "$72", "1400", "-3", "3", "0", "2.50", "5", "seventy", "72 dollars", "1,400."]
    for reference in references:
        for candidate in candidates:
            assert compare_answers(candidate, reference).reward == strict_compare(candidate, reference).reward


def test_an_answer_in_the_thought_does_not_count() -> None:
    assert answer_match(Completion(r"it is \boxed{5}", "no answer"), "5").reward == 0.0


def test_a_completion_cut_off_behind_its_answer_is_graded_by_it() -> None:
    assert answer_match(Completion(None, r"\boxed{5} and", complete=False), "5").reward == 1.0
    assert "cut off" in answer_match(Completion(None, r"it is \boxed{5", complete=False), "5").reason


def test_the_script_reports_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    math_like.main(60)
    assert re.search("60 changed references: 0 accepted; copied questions: 0 accepted", capsys.readouterr().out)
