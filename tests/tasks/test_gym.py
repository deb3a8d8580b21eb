"""Families of reasoning-gym, and the traps of their scorers."""

import importlib.util
import subprocess
import sys

import pytest

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.grading import worker_pool
from schoolhouse.tasks.gym import HASH_DEPENDENT, NO_ANSWER, Gym
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Completion, SchoolError

needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym: pip install 'schoolhouse[gym]'"
)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(SchoolError, match=r"gym:chain_sum needs reasoning-gym: pip install 'schoolhouse\[gym\]'"):
        open_task("gym:chain_sum")


def family(spec: str, seed: int = 0) -> Gym:
    task = open_task(spec, seed)
    assert isinstance(task, Gym)
    return task


@needs_gym
@pytest.mark.parametrize("spec", ["gym:chain_sum?size=20&min_terms=2&max_terms=3", "gym:decimal_arithmetic?size=20"])
def test_a_family_passes_its_check(spec: str) -> None:
    task = family(spec)
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.passed, str(audit)
    assert audit.judged == 20


@needs_gym
def test_only_the_marked_answer_counts_and_only_in_full() -> None:
    task = family("gym:chain_sum?size=5")
    problem = task.problems()[0]
    for answer in (problem.reference, f"The answer is {problem.reference}", rf"\boxed{{about {problem.reference}}}"):
        assert task.grade(problem, Completion(None, answer)).reward == 0.0
    assert task.grade(problem, Completion(None, rf"so \boxed{{{problem.reference}}}.")).reward == 1.0


@needs_gym
def test_a_scorer_that_chokes_on_an_answer_calls_it_wrong() -> None:
    task = family("gym:prime_factorization?size=5")
    verdict = task.grade(task.problems()[0], Completion(None, r"\boxed{two times three}"))
    assert verdict.reward == 0.0
    assert "ValueError" in verdict.reason


@needs_gym
def test_a_family_that_takes_nonsense_fails_its_check() -> None:
    task = family("gym:game_of_life_halting?size=3")
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.references_right == 3
    assert audit.garbage_wrong == 0
    assert "nonsense" in str(audit)


@needs_gym
@pytest.mark.parametrize("name", sorted(NO_ANSWER | HASH_DEPENDENT))
def test_families_that_cannot_be_judged_or_repeated_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(SchoolError, match=f"gym:{name} is refused"):
        open_task(f"gym:{name}")


@needs_gym
def test_a_family_that_depends_on_hashes_is_taken_when_they_are_fixed() -> None:
    code = "from schoolhouse.tasks.base import open_task; print(open_task('gym:word_ladder?size=3').problems()[0].id)"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0", "PYTHONPATH": ":".join(sys.path)}, check=True,
            capture_output=True, text=True,
        ).stdout
        for _ in range(2)
    }  # fmt: skip
    assert len(answers) == 1


@needs_gym
def test_another_problem_under_the_same_number_is_not_judged() -> None:
    problem = family("gym:chain_sum?size=5&min_digits=2").problems()[0]
    verdict = family("gym:chain_sum?size=5").grade(problem, Completion(None, r"\boxed{1}"))
    assert verdict.reward is None
    assert "cannot be repeated" in verdict.reason


@needs_gym
def test_practice_and_exam_are_disjoint_and_the_exam_is_the_same_for_every_seed() -> None:
    one, two = family("gym:gcd?size=200", 1), family("gym:gcd?size=200", 2)
    assert [p.id for p in one.eval_problems()] == [p.id for p in two.eval_problems()]
    assert one.train_problems(0, 8) != two.train_problems(0, 8)
    assert not {p.id for p in one.eval_problems()} & {p.id for p in one.train_problems(0, 200)}


@needs_gym
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gym:chain_sums", "unknown family `chain_sums`; did you mean `chain_sum`"),
        ("gym:", "unknown family ``"),
        ("gym:chain_sum?min_term=3", "unknown option `min_term`; did you mean `min_terms`"),
        ("gym:chain_sum?min_terms=0", "gym:chain_sum: min_terms must be positive"),
        ("gym:chain_sum?min_terms=few", "gym:chain_sum: "),
        ("gym:chain_sum?holdout=most", "option `exam` is `most`"),
    ],
)
def test_wrong_names_and_options_are_named(spec: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(spec)
