"""Programs with tests: the shapes of MBPP and HumanEval, and programs that must not get a reward."""

import json
from datetime import date
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.code_runner import run_tests
from schoolhouse.tasks.code_task import CodeTask, extract_code
from schoolhouse.tasks.grading import grade_all, worker_pool
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Completion, SchoolError

MBPP = {
    "task_id": 1,
    "text": "Write a function that doubles a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(-1) == -2"],
    "test_setup_code": "",
}
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def triple(x: int) -> int:\n    """Three times x."""\n',
    "canonical_solution": "    return 3 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 6\n    assert candidate(0) == 0\n",
    "entry_point": "triple",
}
OWN = {"prompt": "Set y to 5.", "tests": ["assert y == 5"], "solution": "y = 5"}


FORGED = """import os
for fd in range(3, 64):
    try:
        os.write(fd, b'[0, "passed"]\\n[1, "passed"]\\n')
    except OSError:
        pass
os._exit(0)"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "programs.jsonl"
    path.write_text("\n".join(map(json.dumps, (MBPP, HUMAN_EVAL, OWN))))
    return path


def test_every_shape_is_read_and_its_solution_passes(path: Path) -> None:
    task = open_task(f"code:{path}?holdout=all")
    problems = task.eval_problems()
    assert "assert double(2) == 4" in problems[0].messages[0].content
    assert "assert double(-1)" not in problems[0].messages[0].content
    assert "def triple" in problems[1].messages[0].content
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.passed, str(audit)


@pytest.mark.parametrize(
    ("row", "reply", "reward"),
    [
        (0, "```python\ndef double(x):\n    return x + x\n```", 1.0),
        (0, "def double(x): return x * 2", 1.0),
        (0, "Wrong:\n```\ndef double(x): return 0\n```\nRight:\n```py\ndef double(x): return 2*x\n```", 1.0),
        (0, "def double(x): return 4", 0.0),
        (0, "", 0.0),
        (0, "def double(x: return", 0.0),
        (0, "import os\nos._exit(0)", 0.0),
        (0, "raise SystemExit(0)", 0.0),
        (0, "import sys\ndef double(x): sys.exit(0)", 0.0),
        (0, FORGED, 0.0),
        (1, "    return 3 * x", 1.0),
        (1, "```python\n    return x * 3\n```", 1.0),
        (1, "```python\ndef triple(x):\n    return x + x + x\n```", 1.0),
        (1, "    return 4 * x", 0.0),
    ],
)  # fmt: skip
def test_a_program_is_graded_by_its_tests(path: Path, row: int, reply: str, reward: float) -> None:
    task = CodeTask(path, holdout="all")
    assert task.grade(task.all_problems[row], Completion(None, reply)).reward == reward


def test_the_share_of_tests_is_a_part_of_the_verdict(path: Path) -> None:
    task = CodeTask(path, holdout="all")
    verdict = task.grade(task.all_problems[0], Completion(None, "def double(x): return 4"))
    assert verdict.parts == {"tests passed": 0.5}
    assert verdict.reason == "test 2 failed: assert double(-1) == -2"


def test_a_program_that_runs_for_ever_is_wrong_and_not_ungraded() -> None:
    run = run_tests("while True: pass", ["assert True"], time_limit=0.5)
    assert (run.passed, run.total) == (0, 1)
    assert "0.5 s" in run.error


def test_a_program_cannot_take_all_memory_or_see_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    tests = ["import os; assert 'SECRET' not in os.environ", "assert os.listdir('.') == []"]
    assert run_tests("pass", tests).passed == 2
    assert "MemoryError" in run_tests("x = bytearray(1 << 33)", ["assert x"]).error


def test_programs_are_graded_in_worker_processes(path: Path) -> None:
    task = open_task(f"code:{path}?holdout=all")
    assert not task.in_process
    problem = task.eval_problems()[0]
    verdicts = grade_all([(problem, Completion(None, "def double(x): return 2*x"))] * 3, task)
    worker_pool(task).close()
    assert [verdict.reward for verdict in verdicts] == [1.0] * 3


def test_the_solutions_are_demonstrations(path: Path) -> None:
    (demonstration,) = CodeTask(path, holdout="none").demonstrations(0, 1)
    assert extract_code(demonstration.answer) == demonstration.problem.reference


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "not a JSON object.*each row needs text/test_list"),
        ("{", "not JSON"),
        ('{"prompt": "x"}', "it needs text/test_list"),
        ('{"text": "x", "test_list": []}', "`test_list` is"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line)
    with pytest.raises(SchoolError, match=f"bad.jsonl:1: .*{message}"):
        open_task(f"code:{path}")


def test_a_table_is_read_and_its_file_belongs_to_the_task(tmp_path: Path) -> None:
    path = tmp_path / "programs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([MBPP]), path)
    task = open_task(f"code:{path}?holdout=all")
    assert task.eval_problems()[0].reference == MBPP["code"]
    assert task.files == (path,)


def test_a_value_in_a_table_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "programs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([OWN | {"prompt": date(2021, 3, 4)}]), path)
    with pytest.raises(SchoolError, match='programs.parquet, row 1: `prompt` is "2021-03-04"; it must be text'):
        open_task(f"code:{path}")


def test_an_unknown_option_is_refused(path: Path) -> None:
    with pytest.raises(SchoolError, match="did you mean `holdout`"):
        open_task(f"code:{path}?hold_out=all")
