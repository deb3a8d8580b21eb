"""A user's own Python file: tasks, and reward functions in TRL's and verl's signature. Mistakes name file and line."""

import json
import re
from pathlib import Path

import pytest

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_all, worker_pool
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Completion, Problem, SchoolError, Verdict

TASK = """
from dataclasses import dataclass
from schoolhouse.tasks.base import Task
from schoolhouse.types import Message, Problem, Verdict

@dataclass(frozen=True)
class Echo(Task):
    seed: int = 0
    word: str = "yes"
    name = "echo"

    def train_problems(self, step, count):
        return [Problem(f"{step}.{i}", (Message("user", self.word),), self.word) for i in range(count)]

    def eval_problems(self, count=None):
        return [Problem("eval", (Message("user", self.word),), self.word)]

    def grade(self, problem, completion):
        return Verdict(float(completion.answer == "\\\\boxed{" + problem.reference + "}"))
"""

TRL = """
def helper(x):
    return x

def reward(prompts, completions, answer, **kwargs):
    return [1.0 if c == "\\\\boxed{" + a + "}" else 0.0 for c, a in zip(completions, answer)]
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"say {i}", "reference": str(i), "answer": str(i), "level": i} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write(tmp_path: Path, code: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(code)
    return path


def graded_in_process(tmp_path: Path, data: Path, code: str, answer: str = "x") -> Verdict:
    """The verdict of a reward function on one completion of the second problem, in this process."""
    task = open_task(f"python:{write(tmp_path, code)}?data={data}")
    return task.grade(task.audit_problems()[1], Completion("a thought", answer))


def graded_in_worker(spec: str, *answers: str) -> list[Verdict]:
    """Verdicts of a task on several completions of its first problem, by its worker processes."""
    task = open_task(spec)
    try:
        problem = task.audit_problems(1)[0]
        return grade_all([(problem, Completion(None, answer)) for answer in answers], task)
    finally:
        worker_pool(task).close()


# ---- tasks


def test_a_users_own_task(tmp_path: Path) -> None:
    path = write(tmp_path, TASK)
    task = open_task(f"python:{path}:Echo?word=no", seed=4)
    assert task.train_problems(0, 2)[1].reference == "no"
    assert getattr(task, "seed", None) == 4
    assert task.name == "echo"
    audit = audit_task(task, 3)
    worker_pool(task).close()
    assert audit.passed, str(audit)


def test_the_name_is_optional_where_a_file_has_one_task(tmp_path: Path) -> None:
    assert isinstance(open_task(f"python:{write(tmp_path, TASK)}"), Task)


def test_files_in_the_same_folder_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("WORD = 'no'\n")
    path = write(tmp_path, TASK.replace('"yes"', "__import__('beside_mine').WORD"))
    assert open_task(f"python:{path}").train_problems(0, 1)[0].reference == "no"


@pytest.mark.parametrize(
    ("code", "rest", "message"),
    [
        (TASK, ":Ecko", "mine.py has no task or reward function `Ecko`; did you mean `Echo`"),
        (TASK, ":Echo?wrod=no", "mine.py:6: Echo has no option `wrod`; did you mean `word`"),
        (TASK + "class Other(Echo): pass", "", "defines Echo, Other; choose one, for example python:.*mine.py:Echo"),
        (
            TASK.replace("    seed: int = 0\n", "").replace('str = "yes"', "str"),
            "",
            r"mine.py:6: Echo needs the option `word`; write .*Echo\?word=VALUE",
        ),
        ("x = 1", "", r"mine.py has no subclass of Task and no reward function; write one of them, such as f\(prompts"),
        ("def f(a): return 1", ":f", "mine.py:1: `f` is neither a subclass of Task nor a reward function"),
        ("x = 1\ndef f(a): return 1", "", r"no reward function, only `f\(a\)` \(.*mine.py:2\); write"),
        (TRL, "", r"mine.py: a reward function needs a file of problems; add \?data=PATH.jsonl"),
        (TRL, "?dta=x.jsonl", "mine.py: unknown option `dta`; did you mean `data`"),
    ],
)
def test_a_file_or_option_that_does_not_fit_is_named(tmp_path: Path, code: str, rest: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(f"python:{write(tmp_path, code)}{rest}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ndef f(:", "mine.py:2 cannot be run: SyntaxError.*line 2"),
        ("x = 1\n\nimport absent_module", "mine.py:3 cannot be run: ModuleNotFoundError"),
        ("raise SystemExit(2)", "mine.py:1 cannot be run: SystemExit: 2"),
        ("def load(row):\n    return row['key']\nload({})", "mine.py:2 cannot be run: KeyError: 'key'"),
        ("import json\n\njson.loads('{')", "mine.py:3 cannot be run: JSONDecodeError"),
    ],
)
def test_an_exception_at_import_names_file_and_line(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(f"python:{write(tmp_path, code)}")


def test_an_exception_in_an_imported_file_of_the_user_names_both_lines(tmp_path: Path) -> None:
    (tmp_path / "beside_broken.py").write_text("x = 1\ny = x / 0\n")
    message = r"mine.py:2 cannot be run: .*beside_broken.py:2: ZeroDivisionError"
    with pytest.raises(SchoolError, match=message):
        open_task(f"python:{write(tmp_path, chr(10) + 'import beside_broken' + TASK)}")


def test_an_exception_in_a_constructor_names_file_and_line(tmp_path: Path) -> None:
    code = TASK.replace('name = "echo"', "name = 'e'\n    def __post_init__(self):\n        int(self.word)")
    message = r"mine.py:12: Echo cannot be created: ValueError: invalid literal for int\(\)"
    with pytest.raises(SchoolError, match=message):
        open_task(f"python:{write(tmp_path, code)}")


@pytest.mark.parametrize(
    ("correct", "wrong", "message"),
    [
        (
            "grade(self, problem, completion)",
            "grade(self, completion)",
            r"18: Echo.grade\(completion\) must accept the call grade",
        ),
        ("grade(self, problem, completion)", "grade(self, problem, completion, x)", r"grade\(problem, completion\)"),
        (
            "eval_problems(self, count=None)",
            "eval_problems(self)",
            r"15: .* the call eval_problems\(count=None\)",
        ),
        (
            "eval_problems(self, count=None)",
            "eval_problems(self, count)",
            r"15: Echo.eval_problems\(count\) must",
        ),
        (
            "train_problems(self, step, count)",
            "train_problems(self, step)",
            r"12: .* must accept the call train_problems\(step, co",
        ),
    ],
)
def test_a_method_with_a_wrong_signature_names_file_and_line(
    tmp_path: Path, correct: str, wrong: str, message: str
) -> None:
    code = TASK.replace(f"def {correct}", f"def {wrong}")
    assert code != TASK
    with pytest.raises(SchoolError, match=f"mine.py:.*{message}"):
        open_task(f"python:{write(tmp_path, code)}")


@pytest.mark.fault("verifier lies")
def test_an_exception_in_grade_names_file_and_line(tmp_path: Path) -> None:
    code = TASK.replace("        return Verdict(float", '        problem.info["level"]\n        return Verdict(float')
    assert code != TASK
    (verdict,) = graded_in_worker(f"python:{write(tmp_path, code)}", "x")
    assert verdict.reward is None
    assert re.fullmatch(r"\S*mine.py:19: KeyError: 'level'", verdict.reason)


def test_a_result_that_is_no_verdict_names_file_and_line(tmp_path: Path) -> None:
    code = TASK.replace("return Verdict(float(", "return (float(")
    (verdict,) = graded_in_worker(f"python:{write(tmp_path, code)}", "x")
    assert verdict.reward is None
    assert re.search(r"mine.py:18: grade\(\) returned a float; return a Verdict", verdict.reason)


def test_a_missing_method_names_file_and_line(tmp_path: Path) -> None:
    code = TASK.partition("    def eval_problems")[0]
    with pytest.raises(SchoolError, match=r"no eval problems: .*mine.py:6: add the method eval_problems\(count=None\)"):
        open_task(f"python:{write(tmp_path, code)}").eval_problems()


def test_a_missing_grade_is_a_reason_with_file_and_line(tmp_path: Path) -> None:
    code = TASK.partition("    def grade")[0]
    (verdict,) = graded_in_worker(f"python:{write(tmp_path, code)}", "x")
    assert verdict.reward is None
    assert re.search(r"mine.py:6: add the method grade\(problem, completion\)", verdict.reason)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchoolError, match="the file .*absent.py does not exist; write python:PATH.py"):
        open_task(f"python:{tmp_path}/absent.py:Echo")


# ---- reward functions


def test_a_reward_function_of_trl_grades_in_worker_processes(tmp_path: Path, data: Path) -> None:
    task = open_task(f"python:{write(tmp_path, TRL)}:reward?data={data}&holdout=none", seed=1)
    assert {p.reference for p in task.train_problems(0, 20)} == {str(i) for i in range(20)}
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.passed, str(audit)
    assert audit.num_problems == 20


def test_trl_functions_get_the_columns_of_the_row_as_lists(tmp_path: Path, data: Path) -> None:
    code = """
def f(prompts, completions, level, reference, **kwargs):
    assert prompts == ["say 1"] and completions == ["x"] and reference == ["1"], (prompts, completions, reference)
    assert kwargs == {"answer": ["1"], "thinking": ["a thought"], "completion_ids": [[]]}, kwargs
    return [level[0] + 0.5]
"""
    assert graded_in_process(tmp_path, data, code) == Verdict(1.5)


def test_trl_functions_get_messages_where_the_prompt_is_conversational(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}], "reference": "1"}))
    code = "def f(completions, prompts): return [len(completions[0][0]['content']) + len(prompts[0])]"
    task = open_task(f"python:{write(tmp_path, code)}?data={data}")
    assert task.grade(task.audit_problems()[0], Completion(None, "four")).reward == 5.0


def test_trl_functions_may_be_coroutines(tmp_path: Path, data: Path) -> None:
    code = "async def f(completions, **kwargs): return [0.25]"
    assert graded_in_process(tmp_path, data, code) == Verdict(0.25)


def test_verl_functions_get_the_answer_without_the_thought(tmp_path: Path, data: Path) -> None:
    code = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, solution_str, extra_info) == ("data", "1", {})
    return {"score": solution_str == ground_truth, "length": len(solution_str), "note": "fine"}
"""
    verdict = graded_in_process(tmp_path, data, code, "1")
    assert (verdict.reward, dict(verdict.parts)) == (1.0, {"score": 1.0, "length": 1.0})


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("[1.0, 0.0]", "f returned 2 rewards for 1 completion; return one reward per completion"),
        ("[]", "f returned 0 rewards for 1 completion"),
        ("[None]", "f returned None"),
        ("[float('nan')]", "f returned 'nan', which is not a finite number"),
        ("[float('inf')]", "f returned 'inf', which is not a finite number"),
        ("['1']", "f returned '1', which is not a finite number"),
        ("[{'value': 1}]", "f returned a dict without the key `score` (its keys: 'value')"),
    ],
)
@pytest.mark.fault("too few rewards")
def test_a_result_that_is_no_reward_names_file_and_line(tmp_path: Path, data: Path, result: str, reason: str) -> None:
    verdict = graded_in_process(tmp_path, data, f"\n\ndef f(completions, **kwargs): return {result}")
    assert verdict.reward is None
    assert f"mine.py:3: {reason}" in verdict.reason


@pytest.mark.parametrize(("result", "kind"), [("0.5", "float"), ("None", "NoneType")])
def test_a_result_that_is_no_list_names_file_and_line(tmp_path: Path, data: Path, result: str, kind: str) -> None:
    verdict = graded_in_process(tmp_path, data, f"\ndef f(completions, **kwargs): return {result}")
    assert verdict.reward is None
    assert f"mine.py:2: f returned a {kind}; return a list with one reward per completion" in verdict.reason


def test_numbers_of_numpy_are_rewards(tmp_path: Path, data: Path) -> None:
    code = "import numpy\ndef f(completions, **kwargs): return numpy.array([0.5], dtype=numpy.float32)"
    assert graded_in_process(tmp_path, data, code) == Verdict(0.5)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("    return [1 / 0]", "mine.py:3: ZeroDivisionError: division by zero"),
        ("    return [float(kwargs['anwser'][0])]", "mine.py:3: KeyError: 'anwser'"),
        ("    import json\n    return [json.loads(completions[0])]", "mine.py:4: JSONDecodeError: "),
        ("    return helper(completions)\ndef helper(x):\n    raise SystemExit('no')", "mine.py:5: SystemExit: no"),
    ],
)
def test_an_exception_in_a_reward_function_names_file_and_line(
    tmp_path: Path, data: Path, body: str, place: str
) -> None:
    code = f"\ndef f(completions, **kwargs):\n{body}\n"
    (verdict,) = graded_in_worker(f"python:{write(tmp_path, code)}:f?data={data}", "x")
    assert verdict.reward is None
    assert place in verdict.reason


def test_an_exception_in_a_coroutine_names_file_and_line(tmp_path: Path, data: Path) -> None:
    code = "import asyncio\nasync def f(completions, **kwargs):\n    await asyncio.sleep(0)\n    return [1 / 0]"
    (verdict,) = graded_in_worker(f"python:{write(tmp_path, code)}?data={data}", "x")
    assert verdict.reward is None
    assert "mine.py:4: ZeroDivisionError" in verdict.reason


def test_the_file_is_named_as_a_path_below_the_working_directory(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "def f(completions, **kwargs): return [1 / 0]")
    monkeypatch.chdir(tmp_path)
    (verdict,) = graded_in_worker(f"python:mine.py?data={data}", "x")
    assert verdict.reason == "mine.py:1: ZeroDivisionError: division by zero"


def test_a_column_that_the_data_lacks_names_file_and_line(tmp_path: Path, data: Path) -> None:
    code = "\ndef f(completions, anwser, **kwargs): return [0.0]"
    message = "mine.py:2: f needs the column `anwser`, but row 1 of .*data.jsonl has none; did you mean `answer`"
    with pytest.raises(SchoolError, match=message):
        open_task(f"python:{write(tmp_path, code)}?data={data}")


def test_a_column_that_one_row_lacks_names_the_row(tmp_path: Path, data: Path) -> None:
    data.write_text(data.read_text() + json.dumps({"prompt": "say x", "reference": "x"}) + "\n")
    code = "def f(completions, level): return [0.0]"
    with pytest.raises(SchoolError, match="mine.py:1: f needs the column `level`, but row 21 of .*data.jsonl has none"):
        open_task(f"python:{write(tmp_path, code)}?data={data}")


def test_positional_only_parameters_are_refused(tmp_path: Path, data: Path) -> None:
    code = "def f(completions, /, **kwargs): return [0.0]"
    with pytest.raises(SchoolError, match="mine.py:1: f: the parameter `completions` is positional-only"):
        open_task(f"python:{write(tmp_path, code)}?data={data}")


def test_a_problem_of_another_file_is_graded_by_its_own_columns(tmp_path: Path, data: Path) -> None:
    code = "def f(completions, level, **kwargs): return [float(level[0])]"
    task = open_task(f"python:{write(tmp_path, code)}?data={data}")
    other = Problem("q", task.audit_problems()[0].messages, "", info={"level": 9})
    assert task.grade(other, Completion(None, "")).reward == 9.0
    without_level = Problem("q", task.audit_problems()[0].messages, "")
    verdict = task.grade(without_level, Completion(None, ""))
    assert verdict.reward is None
    assert "mine.py:1: f needs the column `level`, but problem q has none" in verdict.reason


# ---- rows of TRL and verl


def verl_row(ground_truth: object, **extra: object) -> dict[str, object]:
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": "6 times 3?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"split": "train", "index": 7, **extra},
    }


@pytest.mark.parametrize(
    "ground_truth", ["18", ["18", "18.0"], {"target": 98, "numbers": [1, 2]}, 18, '{"inputs": ["1"]}']
)
def test_verl_functions_get_the_columns_of_verls_rows(tmp_path: Path, ground_truth: object) -> None:
    import pyarrow
    import pyarrow.parquet

    data = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([verl_row(ground_truth)]), data)
    code = f"""
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    assert (data_source, solution_str, ground_truth) == ("openai/gsm8k", "x", {ground_truth!r}), ground_truth
    assert extra_info == {{"split": "train", "index": 7}} and not kwargs
    return 0.5
"""
    task = open_task(f"python:{write(tmp_path, code)}?data={data}&holdout=all")
    (problem,) = task.eval_problems()
    assert problem.messages[0].content == "6 times 3?"
    assert task.grade(problem, Completion(None, "x")) == Verdict(0.5)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "solution": "18"},
        {"prompt": "q", "ground_truth": "18"},
        {"prompt": [{"role": "user", "content": "q"}], "solution": "no box\nat all"},
        {"prompt": "q"},
        {"prompt": "q", "context": "kept for the function"},
    ],
)
def test_trl_functions_grade_rows_of_trls_shape(tmp_path: Path, row: dict[str, object]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row))
    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    text = isinstance(row["prompt"], str)
    code = f"""
def f(prompts, completions, **kwargs):
    kwargs.pop("reference", None)
    assert (kwargs.pop("thinking"), kwargs.pop("completion_ids")) == ([None], [[]])
    assert kwargs == {columns!r}, kwargs
    assert len(prompts) == 1 and completions == {["x"] if text else [[{"role": "assistant", "content": "x"}]]!r}
    return [1.0]
"""
    task = open_task(f"python:{write(tmp_path, code)}?data={data}&holdout=all")
    assert task.grade(task.eval_problems()[0], Completion(None, "x")) == Verdict(1.0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(completions, reference): return [1.0]", "f needs the column `reference`, but row 1 of .* has none"),
        (
            "def f(data_source, solution_str, ground_truth): return 1",
            "f needs a ground truth, but row 1 of .* has no refe",
        ),
    ],
)
def test_a_function_that_needs_an_answer_refuses_rows_without_one(tmp_path: Path, code: str, message: str) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "q"}')
    with pytest.raises(SchoolError, match=f"mine.py:1: {message}"):
        open_task(f"python:{write(tmp_path, code)}?data={data}")


def test_the_columns_of_a_reward_function_can_be_mapped(tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("ask,final\n6 times 3?,18\n")
    code = "def compute_score(data_source, solution_str, ground_truth): return float(ground_truth == '18')"
    task = open_task(f"python:{write(tmp_path, code)}?data={data}&question=ask&answer=final&holdout=all")
    assert task.grade(task.eval_problems()[0], Completion(None, "")) == Verdict(1.0)


@pytest.mark.parametrize("form", ["{}", "#### {}", "<answer>{}</answer>", "The answer is {}."])
def test_a_check_finds_the_form_of_answers_that_a_function_accepts(tmp_path: Path, data: Path, form: str) -> None:
    code = f"def f(completions, reference): return [{form!r}.format(r) == c for c, r in zip(completions, reference)]"
    task = open_task(f"python:{write(tmp_path, code)}?data={data}")
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.passed, str(audit)
    assert f"answers were written as `{form.format('ANSWER')}`" in str(audit)


def test_a_function_that_accepts_no_form_fails_its_check(tmp_path: Path, data: Path) -> None:
    task = open_task(
        f"python:{write(tmp_path, 'def f(completions, **kwargs): return [0.5 for _ in completions]')}?data={data}"
    )
    audit = audit_task(task)
    worker_pool(task).close()
    assert (audit.references_correct, audit.form) == (0, "\\boxed{{{}}}")
