"""Files as problems: bad rows are counted and named, and rows are left out by a list alone, which a note says."""

import json
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.data.files import SourceRow
from schoolhouse.tasks.registry import data_spec, open_task
from schoolhouse.tasks.row_source import CHOICE_INSTRUCTION, RowSource, drop_entry, read_examples
from schoolhouse.types import SchoolError

GOOD = {"question": "What is 6 times 3?", "answer": "18"}


def write(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_bad_rows_are_counted_and_the_way_out_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, {"question": "q", "answer": ""}, GOOD, "nope")
    with pytest.raises(SchoolError) as refusal:
        read_examples(RowSource(str(path)))
    first, second = str(refusal.value).split("\n")
    assert first == f"{path}:2: `answer` is empty; write a value, or delete the row"
    assert second.startswith("2 of 4 rows cannot be used; to leave them out, list them with `school task")


def test_a_file_of_bad_rows_alone_is_refused_by_its_first_row(tmp_path: Path) -> None:
    with pytest.raises(SchoolError, match="rows.jsonl:1: not JSON"):
        read_examples(RowSource(str(write(tmp_path, *["nope"] * 3_000))))


def test_listed_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    empty = {"question": "q", "answer": ""}
    path = write(tmp_path, GOOD, empty, "nope", {"question": "other", "answer": "1"})
    listed = [drop_entry(SourceRow(empty, "x"), "empty"), drop_entry(SourceRow({}, f"{path}:3"), "no JSON")]
    source = RowSource.of(str(path), {"drop": str(write(tmp_path, *listed, name="dropped.jsonl"))})
    examples = read_examples(source)
    assert [example.problem.reference for example in examples.rows] == ["18", "1"]
    assert examples.notes == (f"2 rows of {path} are left out, as listed in {tmp_path}/dropped.jsonl",)
    assert tmp_path / "dropped.jsonl" in source.files


@pytest.mark.parametrize("content", ["", "nope\n", '{"question": "q", "answer": "a"}\n'])
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "dropped.jsonl"
    if content:
        path.write_text(content)
    with pytest.raises(SchoolError, match="dropped.jsonl"):
        open_task(f"jsonl:{write(tmp_path, GOOD)}?drop={path}")


def test_columns_with_long_texts_that_are_not_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {**GOOD, "generations": ["x" * 300], "level": "easy"})
    open_task(f"jsonl:{path}")
    assert capsys.readouterr().err == (
        f"school: {path}: not used: `generations`; `school data {path}` shows what each column is taken for\n"
    )
    open_task(f"jsonl:{path}?ignore=generations")
    assert capsys.readouterr().err == ""


def test_a_prompt_that_has_two_answers_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, {**GOOD, "answer": "19"}, GOOD)
    assert read_examples(RowSource(str(path))).notes == (
        f"1 rows of {path} have the prompt of an earlier row, but another answer",
    )


def test_columns_are_mapped_in_the_spec(tmp_path: Path) -> None:
    path = write(tmp_path, {"ask": "q", "final": "5", "answer": "no"}, name="a.json")
    task = open_task(f"jsonl:{path}?question=ask&answer=final&holdout=none")
    assert [problem.reference for problem in task.train_problems(0, 1)] == ["5"]
    with pytest.raises(SchoolError, match="unknown option `anwser`; did you mean `answer`"):
        open_task(f"jsonl:{path}?anwser=final")


def test_several_answers_are_aliases_that_are_graded(tmp_path: Path) -> None:
    from schoolhouse.types import Completion

    path = write(tmp_path, {"question": "Capital?", "answer": ["Paris", "Lutetia"]})
    task = open_task(f"jsonl:{path}?holdout=all")
    (problem,) = task.eval_problems()
    assert (problem.reference, problem.aliases) == ("Paris", ("Lutetia",))
    boxed = [Completion(None, f"\\boxed{{{answer}}}") for answer in ("Paris", "Lutetia", "Rome", "")]
    assert [task.grade(problem, completion).reward for completion in boxed] == [1.0, 1.0, 0.0, 0.0]


def test_a_chat_file_has_demonstrations_and_no_problems(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    task = open_task(data_spec(str(write(tmp_path, {"messages": turns}))))
    (demonstration,) = task.demonstrations(0, 1)
    assert (demonstration.problem.messages[0].content, demonstration.answer) == ("hi", "hello")
    with pytest.raises(SchoolError, match="has no answers to grade: row 1 has a chat without a reference answer"):
        task.train_problems(0, 1)


def test_choices_ask_for_a_letter(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "q", "choices": ["a", "b"], "answer": 1})
    (problem,) = open_task(f"jsonl:{path}?instruct=boxed&holdout=all").eval_problems()
    assert problem.messages[-1].content == f"q\n\nA. a\nB. b\n{CHOICE_INSTRUCTION}"


def test_a_data_spec_holds_out_what_it_is_told() -> None:
    assert data_spec("a.jsonl") == "jsonl:a.jsonl?holdout=none"
    assert data_spec("a.csv?holdout=tenth&question=q") == "jsonl:a.csv?holdout=tenth&question=q"


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.jsonl.gz", "rows.jsonl"])
def test_a_bare_file_name_is_a_task_to_suggest(name: str) -> None:
    with pytest.raises(SchoolError, match=f"unknown task `{name}`; did you mean `jsonl:{name}`"):
        open_task(name)


def test_every_file_of_a_folder_is_an_input_of_the_task(tmp_path: Path) -> None:
    paths = [write(tmp_path, {**GOOD, "n": n}, name=f"{n}.jsonl") for n in range(3)]
    assert list(open_task(f"jsonl:{tmp_path}").files) == paths
