"""Answers that math-verify compares, in worker processes, and answers that it must not decide."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.grading import worker_pool
from schoolhouse.tasks.jsonl import open_jsonl
from schoolhouse.tasks.worker_pool import WorkerPool
from schoolhouse.types import Completion, Problem, Verdict


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mathematics") / "mathematics.jsonl"
    references = [r"\sqrt{2}", "x^2+1", r"\frac{\pi}{2}", r"\{1,2\}", "(1,2]", r"2\sqrt{3}\text{ cm}", r"y=2x+1"]
    path.write_text("".join(json.dumps({"prompt": f"say {r}", "reference": r}) + "\n" for r in references))
    return path


@pytest.fixture(scope="module")
def pool(file: Path) -> Iterator[WorkerPool]:
    with WorkerPool(open_jsonl(str(file))) as pool:  # without a spec: workers get the pickled task
        yield pool


def verdict(pool: WorkerPool, candidate: str, reference: str) -> Verdict:
    return pool.grade_all([(Problem("p", (), reference), Completion(None, f"\\boxed{{{candidate}}}"))])[0]


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        ("1+x^2", "x^2+1"),
        ("0.1x", r"\frac{x}{10}"),
        (r"\{2,1\}", r"\{1,2\}"),
        ("2,1", r"\{1,2\}"),
        (r"\left(1,2\right)", "(1,2)"),
        ("2x+1", "y=2x+1"),
        (r"$\pi$", r"\pi"),
        ("1.5", r"1\frac{1}{2}"),
        (r"2\sqrt{3}", r"2\sqrt{3}\text{ cm}"),
        ("[-2,7]", r"x \in [-2,7]"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"x=\sqrt{2}", r"\sqrt{2}"),
        ("2516_8", "2516_8"),
    ],
)
def test_the_same_expression_is_right(pool: WorkerPool, candidate: str, reference: str) -> None:
    assert verdict(pool, candidate, reference).reward == 1.0


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        ("1.414214", r"\sqrt{2}"),
        ("1.414213562373095", r"\sqrt{2}"),
        ("6.283185", r"2\pi"),
        ("0.333333,0.5", r"\{1/3,1/2\}"),
        (r"100\sqrt{2}\%", r"\sqrt{2}"),
        (r"3=\sqrt{2}", r"\sqrt{2}"),
        ("2516_9", "2516_8"),
        (r"(-2,7)", r"x \in [-2,7]"),
        (r"\sqrt{2}\%", r"\sqrt{2}"),
        (r"10\%, 20\%", r"\{10,20\}"),
        (r"\{1,2\}", "(1,2)"),
        ("(1,2)", r"\{1,2\}"),
        (r"\left\{1,2\right\}", r"\left(1,2\right)"),
        ("1,2", "(1,2)"),
        ("[1,2]", "(1,2)"),
        ("(2,1)", "(1,2)"),
        (r"2\sqrt{3}\text{ kg}", r"2\sqrt{3}\text{ cm}"),
        (r"\text{either } \sqrt{3} \text{ or } \sqrt{2}", r"\sqrt{2}"),
        (r"the answer is \sqrt{2}", r"\sqrt{2}"),
        ("zzz", r"\sqrt{2}"),
        ("x" * 3_000, r"\sqrt{2}"),
    ],
)
def test_answers_that_math_verify_alone_accepts_are_wrong(pool: WorkerPool, candidate: str, reference: str) -> None:
    assert verdict(pool, candidate, reference).reward == 0.0


@pytest.mark.parametrize("thought", ["so 1.41", r"\boxed{\sqrt{2}}"])
def test_an_answer_in_the_thought_does_not_count(pool: WorkerPool, thought: str) -> None:
    problem = Problem("p", (), r"\sqrt{2}")
    (graded,) = pool.grade_all([(problem, Completion(thought, "no answer"))])
    assert graded.reward == 0.0


def test_a_giant_number_does_not_block_the_next_completion(file: Path) -> None:
    with WorkerPool(open_jsonl(str(file)), timeout=2.0) as pool:
        giant, right = pool.grade_all(
            [
                (Problem("p", (), r"\sqrt{2}"), Completion(None, r"\boxed{10^{10^{10}}}")),
                (Problem("p", (), r"\sqrt{2}"), Completion(None, r"\boxed{2^{1/2}}")),
            ]
        )
    assert giant.reward != 1.0
    assert right.reward == 1.0


def test_it_works_in_any_thread(pool: WorkerPool) -> None:
    # math-verify's own alarm raises outside the main thread: there it would make every answer wrong.
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(verdict(pool, "1+x^2", "x^2+1")))
    thread.start()
    thread.join()
    assert verdicts == [Verdict(1.0)]


def test_expressions_pass_their_audit(file: Path) -> None:
    task = open_jsonl(str(file))
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.passed, str(audit)
    assert audit.num_problems == 7


@pytest.mark.parametrize(("candidate", "reward"), [(r"\sqrt{2}", 0.0), (r"\begin{cases} ? \\", 1.0)])
def test_an_unreadable_reference_is_compared_by_its_spelling(pool: WorkerPool, candidate: str, reward: float) -> None:
    problem = Problem("p", (), r"\begin{cases} ? \\")
    (graded,) = pool.grade_all([(problem, Completion(None, f"<answer>{candidate}</answer>"))])
    assert graded.reward == reward
