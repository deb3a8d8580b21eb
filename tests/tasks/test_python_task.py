"""A user's own Python file: Tasks, and reward functions as TRL and verl call them."""

import json
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
        return [Problem("exam", (Message("user", self.word),), self.word)]

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


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path


def rewarded(tmp_path: Path, data: Path, text: str, answer: str = "x") -> Verdict:
    """What a reward function says of one reply to the second problem, in this process."""
    task = open_task(f"python:{write(tmp_path, text)}?data={data}")
    return task.grade(task.problems()[1], Completion("thinking", answer))


# ---- tasks


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path, TASK)
    task = open_task(f"python:{path}:Echo?word=no", seed=4)
    assert task.train_problems(0, 2)[1].reference == "no"
    assert getattr(task, "seed", None) == 4
    assert task.name == "echo"
    audit = audit_task(task, 3)
    worker_pool(task).close()
    assert audit.passed, str(audit)


def test_the_name_may_be_left_out_where_there_is_one(tmp_path: Path) -> None:
    assert isinstance(open_task(f"python:{write(tmp_path, TASK)}"), Task)


def test_the_files_beside_it_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("WORD = 'no'\n")
    path = write(tmp_path, TASK.replace('"yes"', "__import__('beside_mine').WORD"))
    assert open_task(f"python:{path}").train_problems(0, 1)[0].reference == "no"


@pytest.mark.parametrize(
    ("text", "rest", "message"),
    [
        (TASK, ":Ecko", "has no `Ecko`; did you mean `Echo`"),
        (TASK, ":Echo?wrod=no", "Echo takes no option `wrod`; did you mean `word`"),
        (TASK + "class Other(Echo): pass", "", "has Echo, Other; say which: python:.*mine.py:Echo"),
        ("x = 1", "", "no subclass of Task and no reward function: f\\(prompts"),
        ("def f(a): return 1", ":f", "`f` is neither a subclass of Task nor a reward function"),
        ("def f(:", "", "mine.py:1 cannot be run: SyntaxError.*line 1"),
        ("import absent_module", "", "mine.py:1 cannot be run: ModuleNotFoundError"),
        ("raise SystemExit(2)", "", "mine.py:1 cannot be run: SystemExit"),
        (
            TASK.replace('name = "echo"', "name = 'e'\n    def __post_init__(self): 1 / 0"),
            "",
            "Echo cannot be made: Zero",
        ),
        (TRL, "", r"needs problems: add \?data=PATH.jsonl"),
        (TRL, "?dta=x.jsonl", "unknown option `dta`; did you mean `data`"),
    ],
)
def test_a_file_that_does_not_fit_is_told_why(tmp_path: Path, text: str, rest: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(f"python:{write(tmp_path, text)}{rest}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SchoolError, match="there is no file .*absent.py"):
        open_task(f"python:{tmp_path}/absent.py:Echo")


# ---- reward functions


def test_a_reward_function_of_trl_judges_in_worker_processes(tmp_path: Path, data: Path) -> None:
    task = open_task(f"python:{write(tmp_path, TRL)}:reward?data={data}&holdout=none", seed=1)
    assert {p.reference for p in task.train_problems(0, 20)} == {str(i) for i in range(20)}
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.passed, str(audit)
    assert audit.judged == 20


def test_trl_gets_the_columns_of_the_row_as_lists(tmp_path: Path, data: Path) -> None:
    text = """
def f(prompts, completions, level, reference, **kwargs):
    assert prompts == ["say 1"] and completions == ["x"] and reference == ["1"], (prompts, completions, reference)
    assert kwargs == {"answer": ["1"]}, kwargs
    return [level[0] + 0.5]
"""
    assert rewarded(tmp_path, data, text) == Verdict(1.5)


def test_trl_gets_conversations_where_the_prompt_is_one(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": [{"role": "user", "content": "hi"}], "reference": "1"}))
    text = "def f(completions, prompts): return [len(completions[0][0]['content']) + len(prompts[0])]"
    task = open_task(f"python:{write(tmp_path, text)}?data={data}")
    assert task.grade(task.problems()[0], Completion(None, "four")).reward == 5.0


def test_trl_functions_may_be_coroutines(tmp_path: Path, data: Path) -> None:
    assert rewarded(tmp_path, data, "async def f(completions, **kwargs): return [0.25]") == Verdict(0.25)


def test_verl_gets_the_reply_without_its_thinking(tmp_path: Path, data: Path) -> None:
    text = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, solution_str, extra_info) == ("data", "1", None)
    return {"score": solution_str == ground_truth, "length": len(solution_str), "note": "fine"}
"""
    verdict = rewarded(tmp_path, data, text, "1")
    assert (verdict.reward, dict(verdict.parts)) == (1.0, {"score": 1.0, "length": 1.0})


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("[1.0, 0.0]", "returned 2 rewards for 1 completion"),
        ("[]", "returned 0 rewards for 1 completion"),
        ("[None]", "returned None"),
        ("[float('nan')]", "'nan', which is not a finite number"),
        ("[float('inf')]", "'inf', which is not a finite number"),
        ("['1']", "'1', which is not a finite number"),
        ("[{}]", "without `score`"),
    ],
)
@pytest.mark.fault("too few rewards")
def test_what_is_no_reward_is_no_verdict(tmp_path: Path, data: Path, result: str, reason: str) -> None:
    verdict = rewarded(tmp_path, data, f"def f(completions, **kwargs): return {result}")
    assert verdict.reward is None
    assert reason in verdict.reason


def test_numbers_of_numpy_are_rewards(tmp_path: Path, data: Path) -> None:
    text = "import numpy\ndef f(completions, **kwargs): return numpy.array([0.5], dtype=numpy.float32)"
    assert rewarded(tmp_path, data, text) == Verdict(0.5)


@pytest.mark.fault("verifier lies")
def test_a_reward_function_that_raises_is_no_zero(tmp_path: Path, data: Path) -> None:
    task = open_task(f"python:{write(tmp_path, 'def f(completions, **kwargs): return [1 / 0]')}?data={data}")
    (verdict,) = grade_all([(task.problems()[0], Completion(None, "x"))], task)
    worker_pool(task).close()
    assert verdict == Verdict(None, "the verifier raised ZeroDivisionError: division by zero")


def test_a_column_that_the_data_lacks_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(SchoolError, match="f needs `anwser`, which .*data.jsonl does not have; did you mean `answer`"):
        open_task(f"python:{write(tmp_path, 'def f(completions, anwser, **kwargs): return [0.0]')}?data={data}")


def test_a_problem_of_another_file_is_judged_by_its_own_columns(tmp_path: Path, data: Path) -> None:
    text = "def f(completions, level, **kwargs): return [float(level[0])]"
    task = open_task(f"python:{write(tmp_path, text)}?data={data}")
    assert (
        task.grade(Problem("q", task.problems()[0].messages, "", info={"level": 9}), Completion(None, "")).reward == 9.0
    )
