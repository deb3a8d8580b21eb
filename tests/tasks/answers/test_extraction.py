"""Extracting the final answer of a completion."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.tasks.answer_match import answer_match
from schoolhouse.tasks.answers.extraction import Extraction, extract_answer, normalized_answer
from schoolhouse.types import Completion


def extracted(text: str, extraction: Extraction = "boxed") -> str | None:
    return extract_answer(Completion(None, text), extraction)[0]


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


@pytest.mark.parametrize(
    ("extraction", "text", "answer"),
    [
        ("hash", "6 times 4 is 24.\n#### 24", "24"),
        ("hash", "#### 23\nno\n#### 1,024 \nend", "1,024"),
        ("hash", "24", None),
        ("answer_colon", "so\n**Answer: 24**", "24"),
        ("answer_colon", "Answer: 1\nThe final answer is: $\\boxed{x+1}$", "x+1"),
        ("answer_colon", "the answer 5", None),
        ("last_number", "3 cats and 4 dogs make 7 pets.", "7"),
        ("last_number", "It costs $1,234.50 in total", "$1,234.50"),
        ("last_number", "x is -3/4, I think", "-3/4"),
        ("last_number", "nothing", None),
        ("whole", " Paris ", "Paris"),
        ("auto", "#### 24", "24"),
        ("auto", "Paris", "Paris"),
        ("auto", r"Answer: 3, or \boxed{4}", "4"),
        ("auto", r"\boxed{3} \boxed{4}", None),
    ],
)
def test_each_mode_finds_its_mark(extraction: Extraction, text: str, answer: str | None) -> None:
    assert extracted(text, extraction) == answer


def test_an_empty_box_of_the_question_is_no_answer() -> None:
    assert extracted(r"solve $x + \boxed{\phantom{2}} = 3$: \boxed{4}") == "4"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (r"\boxed{1} and \boxed{2}", 1.0),
        (r"\[\boxed{2}, \boxed{1}\]", 1.0),
        (r"\boxed{1} or \boxed{2}", 0.0),
        (r"\boxed{1} \boxed{2}", 0.0),
        (r"\boxed{1}, \boxed{2}, \boxed{3}", 0.0),
    ],
)
def test_boxes_that_a_comma_joins_are_a_list(text: str, reward: float) -> None:
    assert answer_match(Completion(None, text), r"\{1,2\}").reward == reward


def test_votes_are_counted_in_the_form_of_the_answer_that_the_mode_finds() -> None:
    texts = ["It is 5.\n#### 5", "#### 5.0", "#### 6"]
    forms = [normalized_answer(Completion(None, text), "hash") for text in texts]
    assert forms[0] == forms[1] != forms[2]
