"""Reward functions in worker processes: what they see, whole batches, coroutines, models, processes and failures."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, SchoolError, Verdict

CODE = """
import asyncio, multiprocessing, os, subprocess, time
from multiprocessing import resource_tracker; from pathlib import Path

LOADED = []

def size(completions, **columns):
    return [float(len(completions)) for _ in completions]

def order(completions, level, **columns):
    return [10 * row + int(answer) for row, answer in zip(level, completions)]

def fails(completions, **columns):
    return [inner(answer) for answer in completions]

def inner(answer):
    if answer == "raise":
        raise KeyError("level")
    if answer == "hang":
        time.sleep(600)
    if answer == "crash":
        os._exit(3)
    return 1.0

def none(completions, **columns):
    return [None if answer == "none" else 1.0 for answer in completions]

def short(completions, **columns):
    return [1.0] * 2

def infinite(completions, **columns):
    return [float(answer) for answer in completions]

def table(completions, level=None, note=None, **columns):
    assert columns.keys() == {"prompts", "completion_ids", "thinking", "reference"}, columns
    return [float([level, note] == [[0, 1, 2, 3], [None, "a", None, None]])] * len(completions)

def sees(completion, prompt, thinking, completion_ids, level, reference):
    assert (completion, thinking, completion_ids) == ("answer", "thought", [5, 6])
    assert (prompt, level, reference) == ("say 0", 0, "0")
    return 1.0

def compute_score(solution_str, ground_truth, thinking, level, **extra):
    assert extra.keys() == {"data_source", "extra_info"}, extra
    return float((solution_str, ground_truth, thinking, level) == ("answer", "0", "thought", 0))

def loads(completion):
    if not LOADED:
        time.sleep(1.0)
        LOADED.append(1)
    return 1.0

def processes(completion):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return float(sum(pool.map(abs, [1, -2])))

def leaves_process(completion, reference):
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(completion).write_text(str(child.pid))
    time.sleep(600)

async def waits(completion):
    await asyncio.sleep(600 if completion == "hang" else 0.3)
    if completion == "raise":
        raise KeyError("level")
    return 1.0

async def blocks(completion):
    if completion == "hang":
        time.sleep(600)
    return 1.0

async def batch(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(completions)) for _ in completions]

def writes(completion):
    data = {"long": b"x" * 70_000, "text": b"hello\\n", "forged": b'{"case": 7, "reward": 1, "reason": ""}\\n'}
    for descriptor in {*range(3, 2000)} - {resource_tracker._resource_tracker._fd}:
        try:
            os.write(descriptor, data.get(completion, b""))
        except OSError:
            pass
    return 1.0
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {i}", "reference": str(i), "level": i} for i in range(4)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.py").write_text(CODE)
    return tmp_path


def grade(
    name: str, *answers: str, workers: int = 2, options: str = "", timeout: float = 1.0, load_timeout: float = 20.0
) -> list[Verdict]:
    """The verdicts of a function of the file. The answers belong to the rows of the data, one after another."""
    task = open_task(f"python:mine.py:{name}?data=data.jsonl&holdout=all{options}")
    problems = task.eval_problems()
    cases = [(problems[i % 4], Completion("thought", answer, True, (5, 6))) for i, answer in enumerate(answers)]
    with WorkerPool(task, workers, timeout, load_timeout=load_timeout) as pool:
        return pool.grade_all(cases)


def rewards(*arguments: str, **named: Any) -> list[float | None]:
    return [verdict.reward for verdict in grade(*arguments, **named)]


# ---- what a function sees


@pytest.mark.parametrize("name", ["sees", "compute_score"])
def test_a_function_gets_values_by_the_names_of_its_parameters(file: Path, name: str) -> None:
    assert grade(name, "answer") == [Verdict(1.0)]


def test_a_batch_has_all_columns_and_none_where_a_row_lacks_one(file: Path) -> None:
    rows = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
    rows[1]["note"] = "a"
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rewards("table", "a", "a", "a", "a") == [1.0] * 4


def test_conversational_prompts_give_conversational_completions(file: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"say {i}"}], "level": i} for i in range(4)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.py").write_text(
        "def f(prompts, completions, **columns):\n"
        "    return [float(f'{p} {c}'.count('role') * len(c[0]['content'])) for p, c in zip(prompts, completions)]\n"
    )
    assert rewards("f", "a", "four") == [2.0, 8.0]


def test_the_columns_of_a_batch_stay_with_their_completions(file: Path) -> None:
    assert rewards("order", "3", "2", "1", "0", "5") == [3.0, 12.0, 21.0, 30.0, 5.0]


def test_a_function_for_one_completion_can_be_a_helper(file: Path) -> None:
    Path("mine.py").write_text("def one(completion): return 1.0\ndef f(completions): return [*map(one, completions)]\n")
    assert open_task("python:mine.py?data=data.jsonl").name == "python:mine.py:f"


# ---- whole batches


@pytest.mark.parametrize(
    ("options", "sizes"),
    [("", [5] * 5), ("&batch=whole", [5] * 5), ("&batch=split", [3, 3, 3, 2, 2]), ("&batch=one", [1] * 5)],
)
def test_the_option_batch_says_how_many_completions_a_call_gets(file: Path, options: str, sizes: list[int]) -> None:
    assert rewards("size", *"abcde", options=options) == sizes


def test_a_coroutine_of_trl_gets_the_whole_batch(file: Path) -> None:
    assert rewards("batch", *"abcde") == [5.0] * 5


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("size", "&batch=al", "mine.py: option `batch` is `al`; known: one, split, whole, auto|did you mean"),
        ("sees", "&batch=whole", r"mine.py:\d+: sees grades one completion per call, so the option `batch` has no mea"),
    ],
)
def test_a_wrong_option_batch_is_an_error(file: Path, function: str, options: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(f"python:mine.py:{function}?data=data.jsonl{options}")


@pytest.mark.fault("batch fails")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("raise", "mine.py:18: KeyError: 'level'"),
        ("hang", "no verdict within 1 s; the verifier was at mine.py:20 in inner"),
        ("crash", "the worker process ended while grading (exit code 3)"),
    ],
)
def test_a_batch_that_fails_is_graded_one_by_one(
    file: Path, capsys: pytest.CaptureFixture[str], answer: str, reason: str
) -> None:
    assert grade("fails", "a", answer, "a", load_timeout=0.5) == [Verdict(1.0), Verdict(None, reason), Verdict(1.0)]
    assert "school: a call of the verifier with 3 completions failed (" in capsys.readouterr().err


def test_a_batch_that_fails_as_a_whole_stays_ungraded(file: Path) -> None:
    reason = "mine.py:18: KeyError: 'level'"
    assert grade("fails", "a", "raise", "a", options="&batch=whole") == [Verdict(None, reason)] * 3


@pytest.mark.fault("too few rewards")
@pytest.mark.parametrize("options", ["", "&batch=whole", "&batch=split"])
def test_a_list_of_a_wrong_length_is_not_tried_again(file: Path, options: str) -> None:
    reasons = {verdict.reason for verdict in grade("short", *"abcde", workers=1, options=options)}
    assert reasons == {"mine.py:28: short returned 2 rewards for 5 completions; return one reward per completion"}


def test_none_in_a_list_leaves_one_completion_ungraded(file: Path) -> None:
    reason = "mine.py:25: none returned None (row 2 of data.jsonl)"
    assert grade("none", "a", "none", "a") == [Verdict(1.0), Verdict(None, reason), Verdict(1.0)]


@pytest.mark.fault("verifier returns NaN")
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_names_function_and_row(file: Path, number: str) -> None:
    first, second, third = grade("infinite", "1", "2", number)
    assert (first, second, third.reward) == (Verdict(1.0), Verdict(2.0), None)
    assert (
        third.reason == f"mine.py:31: infinite returned '{number}', which is not a finite number (row 3 of data.jsonl)"
    )


# ---- models, processes, coroutines


def test_a_model_is_loaded_once_and_outside_the_time_limit(file: Path) -> None:
    started = time.monotonic()
    assert rewards("loads", *"abcdefgh", timeout=0.5) == [1.0] * 8
    assert time.monotonic() - started < 6.0  # eight loads on one core take eight seconds


def test_a_first_call_has_a_limit_too(file: Path) -> None:
    (verdict,) = grade("waits", "hang", timeout=0.2, load_timeout=1.0)
    assert verdict == Verdict(None, "no verdict within 1.2 s")


def test_a_function_may_start_processes(file: Path) -> None:
    assert rewards("processes", "a", timeout=10.0) == [3.0]


def test_a_process_in_a_group_of_its_own_ends_with_its_worker(file: Path) -> None:
    assert rewards("leaves_process", "pid", timeout=0.5, load_timeout=0.5) == [None]
    stat = Path(f"/proc/{Path('pid').read_text()}/stat")
    ended = [not stat.exists() or " Z " in stat.read_text() or time.sleep(0.02) for _ in range(100)]
    assert any(ended)


def test_coroutines_wait_together_with_a_limit_for_each(file: Path) -> None:
    started = time.monotonic()
    verdicts = grade("waits", *["a"] * 20, "hang", "raise", *["a"] * 20, workers=1, load_timeout=0.1)
    assert time.monotonic() - started < 8.0  # forty waits of .3 s, one after another, take 12 s
    assert [verdict.reward for verdict in verdicts] == [1.0] * 20 + [None] * 2 + [1.0] * 20
    assert verdicts[20].reason == "no verdict within 1.1 s"
    assert verdicts[21].reason.endswith("KeyError: 'level'")


def test_a_coroutine_that_blocks_costs_only_its_own_verdict(file: Path) -> None:
    assert rewards("blocks", "a", "hang", "a", "a", workers=1, timeout=0.3, load_timeout=0.1) == [1.0, None, 1.0, 1.0]


# ---- workers that fail


@pytest.mark.fault("worker killed")
def test_a_killed_worker_is_replaced_and_named(file: Path) -> None:
    Path("mine.py").write_text(
        "import os\ndef f(completion):\n    if completion == 'x':\n        os.kill(os.getpid(), 9)\n    return 1.0\n"
    )
    first, killed, last = grade("f", "a", "x", "a", workers=1)
    assert (first, killed.reward, last) == (Verdict(1.0), None, Verdict(1.0))
    assert killed.reason.startswith("the worker process was ended by SIGKILL while grading (exit code -9; ")


@pytest.mark.fault("worker writes other bytes")
@pytest.mark.parametrize("kind", ["long", "text", "forged"])
def test_a_worker_that_writes_other_bytes_is_replaced(file: Path, kind: str) -> None:
    first, bad, last = grade("writes", "a", kind, "a", workers=1)
    assert (first, last) == (Verdict(1.0), Verdict(1.0))
    assert bad.reward is None
    assert bad.reason.startswith("the worker process did not send a verdict: ")


def test_a_verifier_that_always_ends_its_worker_is_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schoolhouse.tasks.worker_pool.LOST_LIMIT", 4)
    Path("mine.py").write_text("import os\ndef f(completion): os._exit(4)\n")
    verdicts = grade("f", *["a"] * 60)
    assert {verdict.reward for verdict in verdicts} == {None}
    assert "exit code 4" in verdicts[0].reason
    assert "completions before this one had no verdict" in verdicts[-1].reason


def test_threads_of_libraries_share_the_cores(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("mine.py").write_text("import os\ndef f(completion): return float(os.environ['OMP_NUM_THREADS'])\n")
    assert rewards("f", "a") == [max(1, len(os.sched_getaffinity(0)) // 2)]
