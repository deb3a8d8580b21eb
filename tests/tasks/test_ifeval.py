"""Instructions that can be checked, in the shape of IFEval."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from schoolhouse.tasks.ifeval import CHECKS, IFEval
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Completion, SchoolError

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A Cat and a dog.", "A cat."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A catalogue.", "A cat."),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"}, "cat cat", "cat"),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 3, "let_relation": "less than"}, "aA", "aaa"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "now three words"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "One. Two!", "Only one."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
        "A b.\n\nSo it is.",
        "So.\n\nIt is.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [date]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Hello", "Bye."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n- c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a*"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1 Section 2", "No"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a}"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "A title"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("change_case:english_lowercase", {}, "all low", "Not low"),
    ("change_case:english_capital", {}, "ALL UP", "Not up"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     "A BIG cat", "A cat"),
    ("startend:end_checker", {"end_phrase": "The end."}, "It is the end.", "It goes on."),
    ("startend:quotation", {}, '"quoted"', "not quoted"),
    ("punctuation:no_comma", {}, "none here", "one, here"),
    ("combination:two_responses", {}, "a******b", "a******a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "It."),
]  # fmt: skip


def test_every_check_has_a_case() -> None:
    assert sorted(name for name, *_ in CASES) == sorted(CHECKS)


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES, ids=lambda value: str(value)[:40])
def test_a_check_accepts_and_refuses(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert CHECKS[name](good, **arguments)
    assert not CHECKS[name](bad, **arguments)


def write(tmp_path: Path, **row: Any) -> Path:
    path = tmp_path / "instructions.jsonl"
    path.write_text(json.dumps(row))
    return path


def test_a_reply_must_follow_every_instruction(tmp_path: Path) -> None:
    names = ["punctuation:no_comma", "keywords:existence"]
    path = write(
        tmp_path, prompt="Write.", instruction_id_list=names, kwargs=[{"keywords": None}, {"keywords": ["cat"]}]
    )
    task = open_task(f"ifeval:{path}?holdout=all")
    (problem,) = task.eval_problems()
    assert task.grade(problem, Completion("a, thought", "a cat")).reward == 1.0
    verdict = task.grade(problem, Completion(None, "a cat, too"))
    assert (verdict.reward, verdict.reason, verdict.parts) == (0.0, names[0], {"instructions followed": 0.5})
    assert task.grade(problem, Completion(None, "")).reward == 0.0


def test_an_instruction_without_a_check_is_named_or_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, prompt="Write.", instruction_id_list=["language:response_language"], kwargs=[{}])
    with pytest.raises(SchoolError, match=r"instructions.jsonl:1: no check for .*unknown=drop"):
        IFEval(path)
    with pytest.raises(SchoolError, match="has no rows"):
        IFEval(path, drop_unknown=True)


@pytest.mark.parametrize(
    ("names", "kwargs", "message"),
    [
        ([], [], "the row needs `prompt`"),
        (["punctuation:no_comma"], [{}, {}], "`kwargs` must be a list with one mapping for each of the 1 instructions"),
        (["punctuation:no_comma"], ["x"], "`kwargs` must be a list with one mapping for each of the 1 instructions"),
        ([["punctuation:no_comma"]], [{}], "no check for the instruction"),
    ],
)
def test_a_mistake_in_a_row_is_named(tmp_path: Path, names: list, kwargs: list, message: str) -> None:
    path = write(tmp_path, prompt="Write.", instruction_id_list=names, kwargs=kwargs)
    with pytest.raises(SchoolError, match=f"instructions.jsonl:1: {message}"):
        IFEval(path)


def test_a_table_is_read_and_its_file_belongs_to_the_task(tmp_path: Path) -> None:
    path = tmp_path / "instructions.parquet"
    rows = [
        {"prompt": "One.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"keywords": None}]},
        {"prompt": "Two.", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["cat"]}]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    task = open_task(f"ifeval:{path}?holdout=all")
    assert [task.grade(one, Completion(None, "a cat")).reward for one in task.eval_problems()] == [1.0, 1.0]
    assert task.files == (path,)
