"""Final answers in the forms of data sets, and values that are none."""

from decimal import Decimal
from typing import Any

import pytest

from schoolhouse.data.chats import BadRow
from schoolhouse.tasks.references import text_of
from schoolhouse.tasks.rows import RowOptions, parse_row


def references(answer: Any, key: str = "answer", **columns: Any) -> tuple[str, ...]:
    row = parse_row({"question": "q", key: answer, **columns}, RowOptions())
    if row.reference_error:
        raise BadRow(row.reference_error)
    return row.references


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("18", ("18",)),
        (18, ("18",)),
        (142.0, ("142",)),
        (0.5, ("0.5",)),
        (Decimal("1.50"), ("1.50",)),
        (True, ("yes", "true")),
        (False, ("no", "false")),
        ("so\n#### 5", ("5",)),
        (["Paris", "Paris ", "Lutetia"], ("Paris", "Lutetia")),
        ([18], ("18",)),
        ({"text": ["a", "b"], "answer_start": [1, 2]}, ("a", "b")),
        ({"value": "a", "aliases": ["b"], "normalized_aliases": ["c"]}, ("a", "b")),
        ([{"text": "a", "tokens": ["a"]}, {"text": "b", "tokens": ["b"]}], ("a", "b")),
        ("The answer is 5.", ("5",)),
        ("Final answer: 1,005", ("1,005",)),
        ("$\\boxed{5}$", ("5",)),
        ("So it is \\boxed{5}.", ("5",)),
        ("[1, 2]", ("[1, 2]",)),
        (r"\frac{1}{2}", (r"\frac{1}{2}",)),
        ("[a, b)", ("[a, b)",)),
        (r"\{1, 2\}", (r"\{1, 2\}",)),
    ],
)
def test_an_answer_is_read(answer: Any, expected: tuple[str, ...]) -> None:
    assert references(answer) == expected


@pytest.mark.parametrize("text", ['["a", "b"]', "['a', 'b']"])
def test_several_answers_may_be_the_text_of_a_list(text: str) -> None:
    assert references(text, "possible_answers") == ("a", "b")
    assert references(text) == (text,)


def test_aliases_are_answers_too() -> None:
    assert references("Paris", answer_aliases=["Lutetia", ""]) == ("Paris", "Lutetia")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "`answer` is null; it must be text or a number"),
        ("", "`answer` is empty; write a value, or delete the row"),
        ([], "`answer` is empty"),
        ([1, 2], r"`answer` is \[1, 2\]; write one answer as text, or a list of texts"),
        ({"a": 1}, "a mapping, but an answer must be text; name the key"),
        ("so\n#### ", "nothing follows `####`"),
        ("proof", "`proof`, which says that there is no final answer"),
        ('{"inputs": ["1"], "outputs": ["2"]}', "JSON cannot be compared as an answer"),
        ("word " * 60, r"`answer` has 60 words, which is too long for a final answer; .*`\?completion=answer`"),
        ("\ud800", "half of a character"),
    ],
)
def test_what_is_no_answer_is_named(answer: Any, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        references(answer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "NaN", " nan ", Decimal("NaN"), [float("nan")]])
@pytest.mark.parametrize("key", ["question", "answer"])
def test_a_missing_number_is_refused_wherever_it_stands(key: str, value: Any) -> None:
    if key == "question" and isinstance(value, list):
        value = value[0]
    with pytest.raises(BadRow, match=f"`{key}` is (nan|NaN|inf), but it must be text or a finite number"):
        references(**{"answer": "5", key: value}) if key == "answer" else parse_row(
            {key: value, "answer": "5"}, RowOptions()
        )


def test_words_that_look_like_nan_are_words() -> None:
    assert references("Nan") == ("Nan",)
    assert references("naan") == ("naan",)


def test_long_formulas_are_answers() -> None:
    matrix = r"\begin{pmatrix} " + r" \\ ".join("1 & 0 & 0 & 0 & x & y" for _ in range(12)) + r" \end{pmatrix}"
    assert references(matrix) == (matrix,)


@pytest.mark.parametrize("value", [True, [], {}, None, b"x"])
def test_a_cell_that_is_no_text_is_named(value: Any) -> None:
    with pytest.raises(BadRow, match="`key` is .*it must be text or a number"):
        text_of(value, "key")
