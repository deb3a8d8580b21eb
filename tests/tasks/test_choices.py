"""Multiple choice: the choices stand below the question, and the letter is the answer."""

from typing import Any

import pytest

from schoolhouse.data.chats import BadRow
from schoolhouse.tasks.rows import RowOptions, parse_row


def letter(correct: Any, choices: Any = ("red", "green", "blue"), key: str = "answer", **columns: Any) -> str:
    choices = list(choices) if isinstance(choices, tuple) else choices
    row = parse_row({"question": "Which?", "choices": choices, key: correct, **columns}, RowOptions())
    assert row.messages[-1].content.startswith("Which?\n\nA. ")
    return row.references[0]


@pytest.mark.parametrize("correct", [1, 1.0, "1", "B", "b", "(B)", "B.", "B)", "green", ["B"]])
def test_the_correct_choice_is_a_number_a_letter_or_a_text(correct: Any) -> None:
    assert letter(correct) == "B"


@pytest.mark.parametrize(
    "key", ["answerKey", "answer_idx", "correct_option", "cop", "label", "correct", "gold", "target"]
)
def test_the_correct_choice_has_many_names(key: str) -> None:
    assert letter(2, key=key) == "C"


@pytest.mark.parametrize(
    "choices",
    [
        '["red", "green", "blue"]',
        "['red', 'green', 'blue']",
        ["A. red", "B. green", "C. blue"],
        ["(A) red", "(B) green", "(C) blue"],
        {"A": "red", "B": "green", "C": "blue", "D": None},
        {"label": ["A", "B", "C"], "text": ["red", "green", "blue"]},
        [{"label": "A", "text": "red"}, {"label": "B", "text": "green"}, {"label": "C", "text": "blue"}],
        "a ) red , b ) green , c ) blue",
        "A. red\nB. green\nC. blue",
        "(A) red\n(B) green\n(C) blue",
    ],
)
def test_choices_are_written_in_many_ways(choices: Any) -> None:
    row = parse_row({"question": "Which?", "options": choices, "answer": "B"}, RowOptions())
    assert row.messages[-1].content == "Which?\n\nA. red\nB. green\nC. blue"
    assert row.references == ("B",)


def test_labels_of_the_row_are_looked_up() -> None:
    assert letter("1", {"text": ["red", "green"], "label": ["1", "2"]}) == "A"
    assert letter("q", {"text": ["red", "green"], "label": ["p", "q"]}) == "B"


def test_numbers_as_choices_are_numbers_of_choices_or_texts() -> None:
    assert letter(0, ("4", "5", "6")) == "A"
    assert letter("6", ("4", "5", "6")) == "C"
    with pytest.raises(BadRow, match="`answer` is 1, which can be the number or the text of a choice; give the letter"):
        letter("1", ("1", "2", "3"))


@pytest.mark.parametrize("wrong", [[1, 2], {"a": 1}, None, "", True, "Z", 3, -1, "purple"])
def test_a_row_without_a_correct_choice_is_refused(wrong: Any) -> None:
    with pytest.raises(BadRow, match=r"`answer` is .*(correct choice|exactly one of the 3 choices)"):
        letter(wrong)


@pytest.mark.parametrize("choices", [["red", None], ["red", ""], ["red", {"image": "x"}], ["red"], "red or green", 3])
def test_choices_that_are_no_texts_are_refused(choices: Any) -> None:
    with pytest.raises(BadRow, match="choice"):
        letter("A", choices)


def test_the_place_of_a_correct_answer_depends_on_the_question_alone() -> None:
    def row(question: str) -> tuple[str, str]:
        wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
        parsed = parse_row({"Question": question, "Correct Answer": "right", **wrong}, RowOptions())
        lines = parsed.messages[-1].content.splitlines()
        (right,) = [line[0] for line in lines if line.endswith("right")]
        assert right == parsed.references[0]
        return right, parsed.messages[-1].content

    assert row("one") == row("one")
    assert {row(f"question {n}")[0] for n in range(40)} == set("ABCD")


def test_the_wrong_answers_may_be_a_list() -> None:
    row = parse_row({"question": "q", "best_answer": "right", "incorrect_answers": ["x", "y"]}, RowOptions())
    assert row.messages[-1].content.count("\n") == 4
    assert f"{row.references[0]}. right" in row.messages[-1].content
