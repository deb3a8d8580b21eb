"""Problems from files: as in GSM8K, as in MATH, and your own."""

import json
from collections import Counter
from pathlib import Path

import pytest

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.jsonl import demonstration_to_row, open_jsonl
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.row_source import INSTRUCTION, RowSource, read_examples
from schoolhouse.types import Completion, Demonstration, Message, Problem, SchoolError

GSM8K = Path(__file__).resolve().parents[2] / "../shared/data/gsm8k_train.jsonl"


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def numbers(tmp_path: Path, count: int = 100) -> Path:
    return write(tmp_path, *({"prompt": f"say {i}", "reference": i} for i in range(count)))


def read_problems(path: Path) -> list[Problem]:
    return [example.problem for example in read_examples(RowSource(str(path))).rows]


# ---- formats of rows


def test_a_row_like_gsm8k(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5 clips.\nThat is all.\n#### 1,005"})
    task = open_jsonl(str(path), holdout="none")
    (problem,) = task.audit_problems()
    assert problem.messages == (Message("user", "How many?"),)
    assert problem.reference == "1,005"
    (demo,) = task.demonstrations(0, 1)
    assert (demo.problem, demo.thought, demo.answer) == (
        problem,
        "2 + 3 = 5 clips.\nThat is all.",
        r"\boxed{1,005}",
    )


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"question": "q", "answer": "5"}, "5"),
        ({"question": "q", "answer": 5}, "5"),
        ({"problem": "q", "solution": r"\boxed{4} no, it is $\boxed{\frac{1}{2}}$."}, r"\frac{1}{2}"),
        ({"problem": "q", "solution": r"so $\boxed 2$."}, "2"),
        ({"problem": "q", "solution": "long", "answer": "7"}, "7"),
        ({"problem": "q", "answer": "7"}, "7"),
        ({"prompt": "q", "reference": " yes "}, "yes"),
        ({"prompt": "q", "reference": 0.5}, "0.5"),
    ],
)
def test_references_are_found(tmp_path: Path, row: dict[str, object], reference: str) -> None:
    (problem,) = read_problems(write(tmp_path, row))
    assert problem.messages == (Message("user", "q"),)
    assert problem.reference == reference


def test_a_prompt_may_be_a_conversation(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hi"), ("user", "1+1?")]
    row = {"prompt": [{"role": role, "content": content} for role, content in turns], "reference": "2"}
    (problem,) = read_problems(write(tmp_path, row))
    assert problem.messages == tuple(Message(role, content) for role, content in turns)


def test_an_instruction_follows_the_question_and_keeps_the_id(tmp_path: Path) -> None:
    path = numbers(tmp_path, 1)
    (plain,), (instructed,) = (
        open_jsonl(str(path)).audit_problems(),
        open_jsonl(str(path), instruct="boxed").audit_problems(),
    )
    assert instructed.messages[-1].content == f"say 0\n{INSTRUCTION}"
    assert instructed.id == plain.id


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "reference": "1"}\r\n\r\n{"prompt": "b", "reference": "2"}')
    assert [problem.reference for problem in read_problems(path)] == ["1", "2"]


GOOD = {"prompt": "q", "reference": "1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'prompt': 1}", "not JSON"),
        ('{"prompt": "q"', "not JSON"),
        ("[" * 100_000, "the JSON cannot be read"),
        ('{"prompt": "q", "reference": ' + "9" * 5_000 + "}", "the JSON cannot be read"),
        ("[1, 2]", "not a JSON object"),
        ({}, "has the keys none; it needs question/answer"),
        ({"quetsion": "q", "answer": "5"}, "has the keys 'quetsion', 'answer'; it needs question/answer"),
        ({"question": "q", "answer": ""}, "`answer` is empty"),
        ({"question": "q", "answer": "so\n#### "}, "nothing follows `####`"),
        ({"question": " ", "answer": "5"}, "`question` is empty"),
        ({"question": "q", "answer": None}, "`answer` is null; it must be text or a number"),
        ({"problem": "q", "solution": "no box"}, r"`solution` has no final answer; put it in \\boxed"),
        ({"prompt": [], "reference": "1"}, "must end with a user turn"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "reference": "1"}, "must end with a user turn"),
        ({"prompt": [{"role": "robot", "content": "x"}], "reference": "1"}, "a turn of `prompt` is"),
        ({"prompt": ["x"], "reference": "1"}, "a turn of `prompt` is"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path, GOOD, "", row, GOOD)
    with pytest.raises(SchoolError, match=f"rows.jsonl:3: .*{message}"):
        read_problems(path)


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9", "reference": "1"}\n')
    with pytest.raises(SchoolError, match="rows.jsonl:2: not UTF-8"):
        read_problems(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text(content)
    with pytest.raises(SchoolError, match="none.jsonl has no rows"):
        open_task(f"jsonl:{path}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchoolError, match="cannot read .*absent.jsonl: No such file"):
        open_task(f"jsonl:{tmp_path}/absent.jsonl")
    with pytest.raises(SchoolError, match="has no data files; a data file has a name with .jsonl"):
        open_task(f"jsonl:{tmp_path}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("holdot=all", "`holdot`; did you mean `holdout`"),
        ("holdout=al", "`al`; did you mean `all`"),
        ("instruct=yes", "`yes`"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(f"jsonl:{numbers(tmp_path)}?{options}")


# ---- train and eval


def test_each_epoch_has_every_problem_once_in_a_new_order(tmp_path: Path) -> None:
    task = open_jsonl(str(numbers(tmp_path)), seed=3, holdout="none")
    epochs = [
        [p.reference for step in range(10) for p in task.train_problems(10 * epoch + step, 10)] for epoch in range(3)
    ]
    assert all(Counter(epoch) == Counter(str(i) for i in range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_training_problems_depend_on_seed_and_step_only(tmp_path: Path) -> None:
    path = str(numbers(tmp_path))
    task = open_jsonl(path, seed=3)
    later = task.train_problems(7, 8)
    assert open_jsonl(path, seed=3).train_problems(7, 8) == later
    assert open_jsonl(path, seed=4).train_problems(7, 8) != later


def test_an_epoch_may_end_within_a_step(tmp_path: Path) -> None:
    task = open_jsonl(str(numbers(tmp_path, 3)), holdout="none")
    references = [p.reference for step in range(3) for p in task.train_problems(step, 5)]
    assert Counter(references) == {"0": 5, "1": 5, "2": 5}
    assert {*references[:3]} == {*references[3:6]} == {"0", "1", "2"}


def test_train_and_eval_share_no_problem(tmp_path: Path) -> None:
    rows = [{"prompt": f"say  {i % 150}" if i < 150 else f"say {i % 150}", "reference": i % 150} for i in range(300)]
    task = open_jsonl(str(write(tmp_path, *rows)))
    evaluated = {p.messages[0].content.split()[1] for p in task.eval_problems()}
    trained = {p.messages[0].content.split()[1] for p in task.train_problems(0, 300)}
    assert not evaluated & trained
    assert len(evaluated | trained) == 150
    assert 5 <= len(evaluated) <= 30


def test_eval_is_the_same_for_every_seed_and_order(tmp_path: Path) -> None:
    (tmp_path / "reversed").mkdir()
    problems = open_jsonl(str(numbers(tmp_path)), seed=1).eval_problems()
    rows = [{"prompt": f"say {i}", "reference": i} for i in reversed(range(100))]
    reversed_problems = open_jsonl(str(write(tmp_path / "reversed", *rows)), seed=2).eval_problems()
    assert {p.id for p in problems} == {p.id for p in reversed_problems}
    assert open_jsonl(str(numbers(tmp_path))).eval_problems(3) == problems[:3]


def test_a_file_may_be_all_eval(tmp_path: Path) -> None:
    task = open_jsonl(str(numbers(tmp_path)), holdout="all")
    assert len(task.eval_problems()) == 100
    with pytest.raises(SchoolError, match="has no training problems \\(100 are held out"):
        task.train_problems(0, 1)


def test_a_file_without_eval_problems_is_refused_for_evaluation(tmp_path: Path) -> None:
    with pytest.raises(SchoolError, match=r"none of its 100 problems is held out; .*\?holdout=all"):
        open_jsonl(str(numbers(tmp_path)), holdout="none").eval_problems()


def test_demonstrations_are_of_the_train_split_only(tmp_path: Path) -> None:
    rows = [{"question": f"say {i}", "answer": f"it is {i}\n#### {i}"} for i in range(100)]
    task = open_jsonl(str(write(tmp_path, *rows)))
    demonstrated = {d.problem.id for d in task.demonstrations(0, 200)}
    assert demonstrated == {p.id for p in task.train_problems(0, 200)}


def test_a_file_without_solutions_has_no_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(SchoolError, match="has no demonstrations"):
        open_jsonl(str(numbers(tmp_path))).demonstrations(0, 1)


# ---- grading


def test_numbers_and_words_are_graded_in_process(tmp_path: Path) -> None:
    assert open_jsonl(str(numbers(tmp_path))).in_process
    assert not open_jsonl(str(write(tmp_path, GOOD, {"prompt": "q", "reference": r"\pi"}))).in_process


def test_a_final_answer_is_graded(tmp_path: Path) -> None:
    task = open_jsonl(str(numbers(tmp_path)))
    (problem,) = task.audit_problems(1)
    assert task.grade(problem, Completion("whatever", r"\boxed{0}")).reward == 1.0
    assert task.grade(problem, Completion(None, "0")).reward == 0.0


@pytest.mark.skipif(not GSM8K.exists(), reason="needs ../shared/data/gsm8k_train.jsonl beside the repository")
def test_gsm8k_passes_its_audit() -> None:
    audit = audit_task(open_task(f"jsonl:{GSM8K}"))
    assert (audit.num_problems, audit.references_correct, audit.perturbed_rejected) == (7_473, 7_473, 7_473)
    assert audit.passed


def test_a_stored_demonstration_comes_back_unchanged(tmp_path: Path) -> None:
    """Where many answers are correct, the one of the demonstration is not the reference."""
    problem = Problem("p", (Message("system", "Be short."), Message("user", "Make 24.")), "((11-1)+6)+8", "game24")
    with_thought = Demonstration(problem, "11+6=17 17-1=16 16+8=24", "\\boxed{((11+6)-1)+8}", "search")
    without_thought = Demonstration(problem, None, "\\boxed{3*8}", "search")
    path = write(tmp_path, demonstration_to_row(with_thought), demonstration_to_row(without_thought))
    task = open_task(f"jsonl:{path}?holdout=none")
    loaded = {(d.problem.messages, d.thought, d.answer) for d in task.demonstrations(0, 2)}
    assert loaded == {(problem.messages, d.thought, d.answer) for d in (with_thought, without_thought)}
    assert task.train_problems(0, 1)[0].reference == problem.reference


def test_references_that_cannot_be_read_are_told_when_the_task_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    references = [r"\frac{1}{2}", r"\begin{cases} ?", r"\text{June 20}", "7:30"]
    path.write_text("\n".join(json.dumps({"prompt": r, "reference": r}) for r in references))
    open_task(f"jsonl:{path}")
    assert capsys.readouterr().err == (
        "school: 1 of 4 references cannot be read as mathematics, and are compared by their spelling; the first is "
        "'\\\\begin{cases} ?'\n"
    )


def test_the_options_of_grading_decide(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": r"Simplify $\sqrt{75}$.", "reference": r"5\sqrt{3}"}))
    task = open_task(f"jsonl:{path}?extract=hash&holdout=all")
    (problem,) = task.eval_problems()
    rewards = [
        task.grade(problem, Completion(None, f"#### {answer}")).reward for answer in (r"5\sqrt{3}", r"\sqrt{75}")
    ]
    assert rewards == [1.0, 0.0]
    assert task.normalized_answer(Completion(None, "#### 5")) is not None
    with pytest.raises(SchoolError, match="option `units` is `loose`"):
        open_task(f"jsonl:{path}?units=loose")
