"""Datasets of reasoning-gym, and the pitfalls of their scorers."""

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


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(SchoolError, match=r"gym:chain_sum needs reasoning-gym: pip install 'schoolhouse\[gym\]'"):
        open_task("gym:chain_sum")


def gym(spec: str, seed: int = 0) -> Gym:
    task = open_task(spec, seed)
    assert isinstance(task, Gym)
    return task


@needs_gym
@pytest.mark.parametrize("spec", ["gym:chain_sum?size=20&min_terms=2&max_terms=3", "gym:decimal_arithmetic?size=20"])
def test_a_dataset_passes_its_audit(spec: str) -> None:
    task = gym(spec)
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.passed, str(audit)
    assert audit.num_problems == 20


@needs_gym
def test_only_a_marked_answer_that_is_fully_correct_counts() -> None:
    task = gym("gym:chain_sum?size=5")
    problem = task.audit_problems()[0]
    for answer in (problem.reference, f"The answer is {problem.reference}", rf"\boxed{{about {problem.reference}}}"):
        assert task.grade(problem, Completion(None, answer)).reward == 0.0
    assert task.grade(problem, Completion(None, rf"so \boxed{{{problem.reference}}}.")).reward == 1.0


@needs_gym
def test_an_answer_that_the_scorer_cannot_read_is_wrong() -> None:
    task = gym("gym:prime_factorization?size=5")
    verdict = task.grade(task.audit_problems()[0], Completion(None, r"\boxed{two times three}"))
    assert verdict.reward == 0.0
    assert "ValueError" in verdict.reason


@needs_gym
def test_a_dataset_that_accepts_nonsense_fails_its_audit() -> None:
    task = gym("gym:game_of_life_halting?size=3")
    audit = audit_task(task)
    worker_pool(task).close()
    assert audit.references_correct == 3
    assert audit.nonsense_rejected == 0
    assert "nonsense" in str(audit)


@needs_gym
@pytest.mark.parametrize("name", sorted(NO_ANSWER | HASH_DEPENDENT))
def test_datasets_that_cannot_be_graded_or_reproduced_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(SchoolError, match=f"gym:{name} is refused"):
        open_task(f"gym:{name}")


@needs_gym
def test_a_dataset_that_depends_on_hashes_is_accepted_when_they_are_fixed() -> None:
    code = (
        "from schoolhouse.tasks.registry import open_task; "
        "print(open_task('gym:word_ladder?size=3').audit_problems()[0].id)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0", "PYTHONPATH": ":".join(sys.path)}, check=True,
            capture_output=True, text=True,
        ).stdout
        for _ in range(2)
    }  # fmt: skip
    assert len(outputs) == 1


@needs_gym
def test_another_problem_with_the_same_index_is_not_graded() -> None:
    problem = gym("gym:chain_sum?size=5&min_digits=2").audit_problems()[0]
    verdict = gym("gym:chain_sum?size=5").grade(problem, Completion(None, r"\boxed{1}"))
    assert verdict.reward is None
    assert "cannot be reproduced" in verdict.reason


@needs_gym
def test_train_and_eval_are_disjoint_and_eval_is_the_same_for_every_seed() -> None:
    one, two = gym("gym:gcd?size=200", 1), gym("gym:gcd?size=200", 2)
    assert [p.id for p in one.eval_problems()] == [p.id for p in two.eval_problems()]
    assert one.train_problems(0, 8) != two.train_problems(0, 8)
    assert not {p.id for p in one.eval_problems()} & {p.id for p in one.train_problems(0, 200)}


@needs_gym
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gym:chain_sums", "unknown dataset `chain_sums`; did you mean `chain_sum`"),
        ("gym:", "unknown dataset ``"),
        ("gym:chain_sum?min_term=3", "unknown option `min_term`; did you mean `min_terms`"),
        ("gym:chain_sum?min_terms=0", "gym:chain_sum: min_terms must be positive"),
        ("gym:chain_sum?min_terms=few", "gym:chain_sum: "),
        ("gym:chain_sum?holdout=most", "option `holdout` is `most`"),
    ],
)
def test_wrong_names_and_options_are_named(spec: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(spec)
