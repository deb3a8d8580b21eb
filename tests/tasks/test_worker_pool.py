"""Verifiers that hang, crash, raise, exit and return nonsense, in real worker processes."""

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_all, grade_rollouts, worker_pool
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, Key, Problem, Rollout, SchoolError, Verdict

UNRULY = """
import ctypes, os, subprocess, sys, time
from schoolhouse.tasks.base import Task
from schoolhouse.types import Verdict

class Strange(Verdict):
    pass

class Unruly(Task):
    def grade(self, problem, completion):
        match completion.answer:
            case "hang":
                while True:
                    pass
            case "hang in C":
                9 ** 9 ** 9
            case "crash":
                ctypes.string_at(0)
            case "leave":
                os._exit(3)
            case "exit":
                sys.exit("no more")
            case "raise":
                raise KeyError("answer")
            case "recurse":
                return self.grade(problem, completion)
            case "nan":
                return Verdict(float("nan"))
            case "eat":
                rows = []
                while True:
                    rows.append("x" * 10_000_000)
            case "eat in C":
                return Verdict(float(len(bytes(1 << 40))))
            case "bare":
                return 1.0
            case "strange":
                return Strange(1.0, "", {"a": True})
            case "parts":
                return Verdict(1.0, "", {"a": "b"})
            case "long":
                raise ValueError("x" * 1_000_000)
            case "slow":
                time.sleep(1)
            case "later":
                import threading
                threading.Timer(0.2, os._exit, (4,)).start()
                return Verdict(1.0)
            case "stop":
                import signal, threading
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()
                return Verdict(1.0)
            case "child":
                child = subprocess.Popen(["sleep", "600"])
                open(problem.reference, "w").write(f"{os.getpid()} {child.pid}")
                time.sleep(600)
        return Verdict(float(completion.answer == problem.reference))
"""


def case(answer: str, reference: str = "right") -> tuple[Problem, Completion]:
    return Problem("p", (), reference), Completion(None, answer)


def results(pool: WorkerPool, *answers: str) -> list[tuple[float | None, str]]:
    return [(v.reward, v.reason) for v in pool.grade_all([case(answer) for answer in answers])]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unruly") / "unruly.py"
    path.write_text(UNRULY)
    return path


@pytest.fixture(scope="module")
def pool(file: Path) -> Iterator[WorkerPool]:
    with WorkerPool(open_task(f"python:{file}"), 2, timeout=2.0, memory_limit=200 << 20, load_timeout=20.0) as pool:
        yield pool


def has_ended(pid: int) -> bool:
    """Whether a process ends within ten seconds (a zombie has ended)."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_verdicts_are_in_order(pool: WorkerPool) -> None:
    answers = ["right" if i % 3 else "wrong" for i in range(100)]
    assert results(pool, *answers) == [(float(answer == "right"), "") for answer in answers]


def test_no_cases_no_verdicts(pool: WorkerPool) -> None:
    assert pool.grade_all([]) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param("hang", "no verdict within 2 s", marks=pytest.mark.fault("verifier hangs", "hang without a word")),
        pytest.param("hang in C", "no verdict within 2 s", marks=pytest.mark.fault("verifier hangs")),
        pytest.param("crash", "exit code -11", marks=pytest.mark.fault("verifier crashes")),
        pytest.param("leave", "exit code 3", marks=pytest.mark.fault("verifier crashes")),
        pytest.param("exit", "SystemExit: no more", marks=pytest.mark.fault("verifier raises")),
        pytest.param("raise", "KeyError: 'answer'", marks=pytest.mark.fault("verifier raises", "verifier lies")),
        pytest.param("recurse", "RecursionError", marks=pytest.mark.fault("verifier raises")),
        pytest.param("nan", "finite", marks=pytest.mark.fault("verifier returns NaN")),
        pytest.param("eat", "MemoryError", marks=pytest.mark.fault("verifier eats memory")),
        pytest.param("eat in C", "MemoryError", marks=pytest.mark.fault("verifier eats memory")),
        ("bare", r"unruly.py:10: grade() returned a float"),
        ("parts", "not made of numbers"),
        ("long", "ValueError: xxx"),
    ],
)
def test_a_failing_verifier_is_never_a_zero(pool: WorkerPool, answer: str, reason: str) -> None:
    first, failed, *others = results(pool, "right", answer, "right", "wrong")
    assert failed[0] is None
    assert reason in failed[1]
    assert len(failed[1]) <= 500
    assert [first, *others] == [(1.0, ""), (1.0, ""), (0.0, "")]


def test_every_verdict_is_timed(pool: WorkerPool) -> None:
    results(pool, "right", "slow", "hang")
    quick, slow, hanging = pool.seconds
    assert 0 < quick < 1 <= slow < 2 <= hanging < 5


def test_a_verdict_of_a_subclass_arrives_as_a_plain_one(pool: WorkerPool) -> None:
    (verdict,) = pool.grade_all([case("strange")])
    assert verdict == Verdict(1.0, "", {"a": 1.0})


def test_a_worker_that_ends_while_idle_costs_no_verdict(pool: WorkerPool) -> None:
    assert results(pool, "later", "later") == [(1.0, "")] * 2
    time.sleep(1.0)
    assert results(pool, "right", "wrong", "right") == [(1.0, ""), (0.0, ""), (1.0, "")]


@pytest.mark.fault("verifier hangs", "hang without a word")
def test_a_worker_that_does_not_read_a_long_completion_is_given_up(file: Path) -> None:
    with WorkerPool(open_task(f"python:{file}"), num_workers=1, timeout=2.0) as pool:
        assert results(pool, "stop") == [(1.0, "")]
        time.sleep(1.0)
        start = time.monotonic()
        (verdict,) = pool.grade_all([case("x" * 1_000_000)])
        assert (verdict.reward, time.monotonic() - start < 10) == (None, True)
        assert "no verdict within 2 s" in verdict.reason
        assert results(pool, "right" * 100_000, "right") == [(0.0, ""), (1.0, "")]


def test_a_problem_that_cannot_be_sent_gets_no_reward(pool: WorkerPool) -> None:
    unpicklable = Problem("p", (), "right", info={"f": lambda: 0})
    verdicts = pool.grade_all([(unpicklable, Completion(None, "right")), case("right")])
    assert verdicts[0].reward is None
    assert "cannot be sent" in verdicts[0].reason
    assert verdicts[1].reward == 1.0


def test_processes_of_a_verifier_are_killed_with_it(pool: WorkerPool, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    (verdict,) = pool.grade_all([case("child", str(pids))])
    assert verdict.reward is None
    assert all(has_ended(int(pid)) for pid in pids.read_text().split())


def test_any_thread_may_grade(pool: WorkerPool) -> None:
    by_thread: dict[int, list[tuple[float | None, str]]] = {}
    threads = [
        threading.Thread(target=lambda i=i: by_thread.update({i: results(pool, *["right", "wrong"][:: 1 - 2 * i])}))
        for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert by_thread == {0: [(1.0, ""), (0.0, "")], 1: [(0.0, ""), (1.0, "")]}


def test_an_interrupted_call_leaves_nothing_behind(pool: WorkerPool) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    results(pool, "slow", "slow")  # both workers have started now
    with pytest.raises(KeyboardInterrupt):
        pool.grade_all([case("right"), case("slow")], interrupt)
    time.sleep(1.2)  # a verdict of the interrupted call would have arrived by now
    assert results(pool, "right", "right") == [(1.0, ""), (1.0, "")]


def test_workers_end_with_the_pool(file: Path) -> None:
    before = set(multiprocessing.active_children())
    with WorkerPool(open_task(f"python:{file}"), 2) as pool:
        pool.grade_all([case("right"), case("right")])
        assert len(set(multiprocessing.active_children()) - before) == 2
    assert not set(multiprocessing.active_children()) - before


def test_a_worker_does_not_outlive_a_killed_parent(file: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = tmp_path / "train.py"
    script.write_text(
        "from schoolhouse.tasks.grading import worker_pool\n"
        "from schoolhouse.tasks.registry import open_task\n"
        "from schoolhouse.types import Completion, Problem\n"
        "if __name__ == '__main__':\n"
        f"    task = open_task('python:{file}')\n"
        "    worker_pool(task).timeout = 600\n"
        f"    worker_pool(task).grade_all([(Problem('p', (), {str(pids)!r}), Completion(None, 'child'))])\n"
    )
    parent = subprocess.Popen([sys.executable, script])
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    worker, child = map(int, pids.read_text().split())
    assert has_ended(worker)
    assert has_ended(child)


def test_a_warm_up_that_raises_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text(
        "import multiprocessing\nfrom schoolhouse.tasks.base import Task\n"
        "class Late(Task):\n    def warm_up(self):\n        raise OSError('no such table')\n"
    )
    with (
        WorkerPool(open_task(f"python:{path}")) as pool,
        pytest.raises(SchoolError, match=r"late.*worker process: .*late.py:5: OSError: no such table"),
    ):
        pool.grade_all([case("right")])


def test_a_process_that_dies_in_its_warm_up_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "dies.py"
    path.write_text(
        "import os\nfrom schoolhouse.tasks.base import Task\n"
        "class Dies(Task):\n    def warm_up(self):\n        os._exit(7)\n"
    )
    with WorkerPool(open_task(f"python:{path}")) as pool, pytest.raises(SchoolError, match="exit code 7"):
        pool.grade_all([case("right")])


def test_a_task_that_cannot_be_pickled_is_an_error_with_advice() -> None:
    class Local(Task):
        name = "local"

    with pytest.raises(SchoolError, match=r"local cannot be sent .*python:FILE.py:CLASS"):
        WorkerPool(Local())


BATCHES = """
import asyncio
from schoolhouse import Task, Verdict

class Batches(Task):
    def __init__(self, batch):
        self.batch = batch

    def grade_batch(self, cases):
        if any(completion.answer == "raise" for _, completion in cases):
            raise ValueError("bad batch")
        if any(completion.answer == "short" for _, completion in cases):
            return [Verdict(1.0)]
        return [Verdict(float(len(cases))) for _ in cases]

class InProcess(Batches):
    in_process = True

class Coroutine(Task):
    async def grade(self, problem, completion):
        await asyncio.sleep(0.2)
        return Verdict(float(completion.answer == problem.reference))
"""


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batches") / "batches.py"
    path.write_text(BATCHES)
    return path


@pytest.mark.parametrize("name", ["Batches", "InProcess"])
@pytest.mark.parametrize(
    ("batch", "answers", "rewards"),
    [
        ("whole", "aaa", [3.0, 3.0, 3.0]),
        ("whole", ["a", "raise", "a"], [None] * 3),
        ("auto", ["a", "raise", "a"], [1.0, None, 1.0]),
        ("auto", ["a", "short", "a"], [None] * 3),
    ],
)
def test_a_task_class_can_grade_whole_batches(
    batches: Path, name: str, batch: str, answers: list[str], rewards: list[float | None]
) -> None:
    task = open_task(f"python:{batches}:{name}?batch={batch}")
    verdicts = grade_all([case(answer) for answer in answers], task)
    assert [verdict.reward for verdict in verdicts] == rewards
    assert {verdict.reason.partition("batches.py:")[2] for verdict in verdicts} <= {
        "",
        "11: ValueError: bad batch",
        "9: grade_batch() returned 1 verdicts for 3 cases; return one verdict for each case",
    }
    worker_pool(task).close()


def test_coroutines_of_a_task_class_wait_together(batches: Path) -> None:
    with WorkerPool(open_task(f"python:{batches}:Coroutine"), 1) as pool:
        assert results(pool, "right") == [(1.0, "")]
        start = time.monotonic()
        assert results(pool, *["right", "wrong"] * 20) == [(1.0, ""), (0.0, "")] * 20
        assert time.monotonic() - start < 4.0  # forty waits of .2 s, one after another, take 8 s


def test_grade_uses_the_tasks_own_workers(file: Path) -> None:
    problems = [Problem("a", (), "right"), Problem("b", (), "other")]
    rollouts = [Rollout(p, Key(0, "t", 0, i, g), (), (), ()) for i, p in enumerate(problems) for g in range(2)]
    task = open_task(f"python:{file}")
    groups = grade_rollouts(
        rollouts, task, lambda rollout: Completion(None, "right" if rollout.key.sample else "raise")
    )
    assert [group.problem.id for group in groups] == ["a", "b"]
    assert [[v.reward for v in group.verdicts] for group in groups] == [[None, 1.0], [None, 0.0]]
    worker_pool(task).close()


PRINTS = """
import json, os, subprocess
from schoolhouse.tasks.base import Task
from schoolhouse.types import Verdict

class Prints(Task):
    def grade(self, problem, completion):
        print("from the verifier")
        os.write(1, b"from its file\\n")
        subprocess.run(["echo", "from its process"])
        raise ValueError(json.loads('"half a character: \\\\ud800"'))
"""


def test_what_a_verifier_prints_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    with WorkerPool(open_task(f"python:{tmp_path / 'prints.py'}"), num_workers=1) as pool:
        verdict = pool.grade_all([(Problem("p", (), ""), Completion(None, ""))])[0]
    out, err = capfd.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("from")] == [
        "from the verifier",
        "from its file",
        "from its process",
    ]
    assert verdict.reason.endswith("ValueError: half a character: ?")


def test_an_idle_worker_ends_itself_and_frees_its_semaphores(tmp_path: Path) -> None:
    (tmp_path / "locks.py").write_text(
        "import multiprocessing\nfrom schoolhouse import Task, Verdict\n"
        "class Locks(Task):\n    def grade(self, problem, completion):\n"
        "        self.lock = multiprocessing.get_context('spawn').Lock()\n        return Verdict(1.0)\n"
    )
    (tmp_path / "script.py").write_text(
        "from schoolhouse.tasks.registry import open_task\nfrom schoolhouse.tasks.grading import grade_all\n"
        "from schoolhouse.types import Completion, Problem\n"
        "if __name__ == '__main__':\n"
        "    print(grade_all([(Problem('p', (), ''), Completion(None, ''))], open_task('python:locks.py'))[0].reward)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n", "")
