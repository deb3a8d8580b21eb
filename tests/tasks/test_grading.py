"""Settings of the workers, and runs in which nothing can be graded."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from grading_speed import FUNCTIONS, measure
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.cli.main import main
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import STOP_AFTER, grade_rollouts, open_graded_task, worker_pool
from schoolhouse.tasks.worker_pool import num_cores
from schoolhouse.types import Completion, Key, Problem, Rollout, SchoolError, Verdict


class Moody(Task):
    """Grades in process. The reference of a problem says what `grade` does."""

    name = "moody"
    in_process = True

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        if problem.reference == "raise":
            return inner(problem)
        return Verdict(None, "no idea (row 3)") if problem.reference == "none" else Verdict(1.0)


def inner(problem: Problem) -> Verdict:
    raise KeyError(problem.reference)


def grade(task: Task, *references: str) -> list[float | None]:
    rollouts = [
        Rollout(Problem(f"{i}", (), reference), Key(0, "t", 0, i), (7, 8), (True, True), (0.0, 0.0), (0,))
        for i, reference in enumerate(references)
    ]
    groups = grade_rollouts(rollouts, task, lambda rollout: Completion(None, "x"))
    return [verdict.reward for group in groups for verdict in group.verdicts]


# ---- settings


def test_without_settings_there_is_one_worker_per_core(tmp_path: Path) -> None:
    pool = worker_pool(open_graded_task("school:chain", 0, WorkerSettings()))
    assert pool.num_workers == num_cores() == len(os.sched_getaffinity(0))


def test_the_settings_of_a_config_reach_the_workers() -> None:
    settings = WorkerSettings(workers=3, timeout=1.5, load_timeout=7.0, memory_limit=0.5)
    pool = worker_pool(open_graded_task("school:chain", 0, settings))
    assert (pool.num_workers, pool.timeout, pool.load_timeout, pool.memory_limit) == (3, 1.5, 7.0, 1 << 29)


def test_a_verifier_sees_the_token_ids_of_the_last_turn() -> None:
    seen = []

    class Looks(Moody):
        def grade(self, problem: Problem, completion: Completion) -> Verdict:
            seen.append(completion)
            return Verdict(1.0)

    grade(Looks(), "right")
    assert seen == [Completion(None, "x", True, (7, 8))]


# ---- nothing judged


@pytest.mark.fault("nothing judged")
def test_a_step_without_a_verdict_is_an_error_with_the_most_frequent_reason() -> None:
    message = (
        rf"(?s)moody: none of the last {STOP_AFTER + 2} completions could be graded. The most frequent reason "
        rf"\({STOP_AFTER} of {STOP_AFTER + 2}\): .*test_grading.py:\d+: KeyError: 'raise'\n"
        r".*test_grading.py:\d+ in grade\n.*test_grading.py:\d+ in inner\n"
    )
    with pytest.raises(SchoolError, match=message):
        grade(Moody(), *["raise"] * STOP_AFTER, "none", "none")


@pytest.mark.fault("nothing judged")
def test_small_steps_without_a_verdict_are_counted_together() -> None:
    task = Moody()
    assert grade(task, *["none"] * (STOP_AFTER - 1)) == [None] * (STOP_AFTER - 1)
    with pytest.raises(SchoolError, match=rf"none of the last {STOP_AFTER} completions .*no idea \(row 3\)"):
        grade(task, "none")


def test_one_verdict_in_a_step_starts_the_count_again() -> None:
    task = Moody()
    grade(task, *["none"] * (STOP_AFTER - 1))
    assert grade(task, *["none"] * STOP_AFTER, "right")[-1] == 1.0
    assert grade(task, *["none"] * (STOP_AFTER - 1)) == [None] * (STOP_AFTER - 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i} + 1?", "reference": str(i + 1)} for i in range(8)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.fault("nothing judged")
def test_a_run_stops_where_nothing_can_be_judged(
    folder: Path, sft_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "reward.py").write_text("def reward(completions, **columns):\n    return [columns['lvel'][0]]\n")
    words = f"train grpo --model {sft_model('school:facts')} --dir run --steps 3 --prompts_per_step 4 --group_size 4"
    task = ["--task", "python:reward.py?data=problems.jsonl&holdout=none", "--sampling.max_new_tokens", "4"]
    assert main([*words.split(), *task, "--rewards.timeout", "3", "--rewards.workers", "1"]) != 0
    error = " ".join(capsys.readouterr().err.split())
    assert "none of the last 16 completions could be graded" in error
    assert "(16 of 16): reward.py:2: KeyError: 'lvel' reward.py:2 in reward correct the verifier" in error
    assert not (folder / "run" / "metrics.jsonl").exists()


# ---- a task class that raises

TASK = """from schoolhouse import Message, Problem, Task, Verdict

class Mine(Task):
    def train_problems(self, step, count):
        return {train}

    def eval_problems(self, count=None):
        return helper(count)

    def grade(self, problem, completion):
        return Verdict(1.0)

def helper(count):
    return [None]
"""


@pytest.mark.fault("task raises")
@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("[][step]", "5: IndexError: list index out of range (in Mine.train_problems)"),
        ("None", "4: Mine.train_problems() returned a NoneType; return a list of Problem"),
        (
            "['a']",
            "4: Mine.train_problems() returned a list whose element 0 is a str; return a list of Problem",
        ),
    ],
)
def test_an_error_in_train_problems_names_file_and_line(
    folder: Path, capsys: pytest.CaptureFixture[str], train: str, message: str
) -> None:
    (folder / "mine.py").write_text(TASK.replace("{train}", train))
    assert main(["task", "python:mine.py"]) != 0
    assert capsys.readouterr().err.strip() == f"school: error: mine.py:{message}"


@pytest.mark.fault("task raises")
def test_an_error_in_eval_problems_names_file_and_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.py").write_text(TASK.replace("{train}", "[]").replace("[None]", "1 / 0"))
    assert main(["task", "python:mine.py", "--eval"]) != 0
    assert "mine.py:14: ZeroDivisionError: division by zero (in Mine.eval_problems)" in capsys.readouterr().err


def test_the_speed_of_grading_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("computes", "waits_together", "nothing", "batch"):
        monkeypatch.delitem(FUNCTIONS, name)
    header, *rows = measure(tmp_path, 8)
    assert header.startswith("| reward function | 1 worker | 2 workers | ratio |")
    assert [row.split(" | ")[0] for row in rows] == [f"| {label}" for label in FUNCTIONS.values()]
