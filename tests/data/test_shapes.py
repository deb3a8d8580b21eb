"""Roles of columns: by their names, by hand, and the columns that are not used."""

from typing import Any

import pytest

from schoolhouse.data.chats import BadRow
from schoolhouse.data.shapes import normalized, recognize

QA = {"question": "q", "answer": "a"}


def roles(row: dict[str, Any], ignored: tuple[str, ...] = (), **mapping: str) -> dict[str, tuple[str, ...]]:
    return {role: keys for role, keys in recognize(row, mapping, ignored).roles.items() if keys}


@pytest.mark.parametrize("name", ["Correct Answer", "correct-answer", " CORRECT_answer "])
def test_names_are_compared_without_case_and_blanks(name: str) -> None:
    assert normalized(name) == "correct_answer"


def test_a_role_is_given_by_hand() -> None:
    row = {"problem": "p", "final": "f", "question": "other", "answer": "x"}
    assert roles(row, question="problem", answer="final") == {"question": ("problem",), "answer": ("final",)}


def test_a_key_inside_a_mapping_is_given_by_hand() -> None:
    row = {"task": {"text": "q", "gold": {"value": "a"}}}
    assert roles(row, question="task.text", answer="task.gold.value")["answer"] == ("task.gold.value",)


def test_a_mapped_column_that_is_not_there_is_named() -> None:
    with pytest.raises(BadRow, match="has no column `anwser`, which is mapped to `answer`; did you mean `answer`"):
        recognize(QA, {"answer": "anwser"})


@pytest.mark.parametrize("key", ["Context", "passage", "BODY", "tools", "system", "story"])
def test_a_column_that_belongs_to_the_question_is_used(key: str) -> None:
    assert (key,) in roles({**QA, key: "x"}).values()
    assert (key,) not in roles({**QA, key: "x"}, ignored=(key,)).values()


@pytest.mark.parametrize("key", ["tool_calls", "premise", "starter_code", "History", "input", "documents", "table"])
def test_a_column_that_would_change_the_question_and_is_not_used_is_refused(key: str) -> None:
    with pytest.raises(
        BadRow, match=f"has `{key}`, which may change the question.*or leave the column out.*ignore={key}`"
    ):
        roles({**QA, key: "x"})
    assert (key,) not in roles({**QA, key: "x"}, ignored=(key,)).values()


@pytest.mark.parametrize("key", ["image", "images", "image_1", "video", "audio", "Picture", "image_path", "figure"])
def test_a_column_that_is_no_text_is_refused(key: str) -> None:
    with pytest.raises(BadRow, match=f"has `{key}`, which a text model cannot read"):
        recognize({**QA, key: "x"}, {})
    assert recognize({**QA, key: None}, {}).kind == "problem"


def test_an_empty_column_changes_nothing() -> None:
    assert roles({**QA, "context": "", "choices": [], "tools": None, "system": " "}) == {
        "question": ("question",),
        "answer": ("answer",),
    }


def test_an_unknown_row_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        BadRow,
        match=r"has the keys 'premise', 'label'; it needs .* name the columns yourself: `\?question=KEY&answer=KEY`",
    ):
        recognize({"premise": "p", "label": 1}, {})


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "p", "messages": ["p", "a"]}, "chat"),
        ({"problem": "p", "answer": "a", "messages": ["p ", "a"]}, "problem"),
        ({"problem": "p", "solution": "s", "messages": ["p", "a"]}, "problem"),
        ({"question": "q", "reasoning": "r", "answer": "18"}, "problem"),
        ({"question": "q", "reasoning": "r", "answer": "long " * 50}, "completion"),
        ({"prompt": "p", "completion": "c"}, "completion"),
        ({"prompt": "p"}, "prompt"),
        ({"instruction": "i", "input": "x", "output": "o"}, "completion"),
        ({"question": "q", "response": "r", "answer": "a"}, "problem"),
    ],
)
def test_the_kind_of_a_row(row: dict[str, Any], kind: str) -> None:
    assert recognize(row, {}).kind == kind


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"instruction": "Answer yes or no.", "question": "q", "answer": "yes"}, "instruction"),
        ({"problem": "p", "answer": "a", "messages": ["another question", "a"]}, "messages"),
        ({"prompt": "something else", "messages": ["q", "a"]}, "prompt"),
        ({"question": "q", "answer": "a", "text": "All that is known."}, "text"),
    ],
)
def test_a_second_question_is_refused_unless_it_is_the_same(row: dict[str, Any], key: str) -> None:
    with pytest.raises(BadRow, match=f"has `{key}`, which may change the question and is not used"):
        recognize(row, {})
    recognize(row, {}, (key,))


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(BadRow, match="has the columns `answer` and `Answer`, whose names count as the same"):
        recognize({**QA, "Answer": "b"}, {})
    assert recognize({**QA, "Answer": "b"}, {}, ("Answer",)).key("answer") == "answer"


@pytest.mark.parametrize("mark", [0, 1, False, True])
@pytest.mark.parametrize("key", ["label", "is_correct", "correct"])
def test_a_mark_of_wrong_answers_is_refused(key: str, mark: object) -> None:
    with pytest.raises(BadRow, match=f"has `{key}`, which may say that the answer is wrong"):
        recognize({**QA, key: mark}, {})


def test_the_numbers_of_a_prompt_are_for_the_reward_function() -> None:
    row = {"prompt": [{"role": "user", "content": "Make 98 of 44, 19 and 35."}], "nums": [44, 19, 35], "target": 98}
    assert recognize(row, {}).key("question") == "prompt"
    with pytest.raises(BadRow, match="has numbers and a target, but no question"):
        recognize({"nums": [1], "target": 2}, {})
