"""Opening tasks by spec, grading in groups, and audits."""

import re

import pytest

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_rollouts
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Completion, Key, Message, Problem, Rollout, SchoolError, Verdict


class Sums(Task):
    """Graded in process; `accepts` decides what is correct."""

    name = "sums"
    in_process = True

    def __init__(self, accepts=lambda problem, answer: answer == f"\\boxed{{{problem.reference}}}") -> None:
        self.accepts = accepts

    def train_problems(self, step: int, count: int) -> list[Problem]:
        return [Problem(f"{step}+{i}", (Message("user", f"{step}+{i}?"),), str(step + i)) for i in range(count)]

    def eval_problems(self, count: int | None = None) -> list[Problem]:
        return self.train_problems(-1, 10)[:count]

    def grade(self, problem: Problem, completion: Completion) -> Verdict:
        return Verdict(float(self.accepts(problem, completion.answer)))


# ---- opening


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scool", "unknown task `scool`; did you mean `school`"),
        ("jsonnl:x.jsonl", "did you mean `jsonl`"),
        ("addition?digits=3", "did you mean `school:addition`"),
        ("shoping", "did you mean `school:shopping`"),
        ("data/train.jsonl", "did you mean `jsonl:data/train.jsonl`"),
        ("mine.py", "did you mean `python:mine.py`"),
        ("qqq", "known: school, word_problems, jsonl, code, ifeval, game24, gym, python"),
        ("", "unknown task ``"),
        ("school?digits", "`digits` is not an option; write NAME=VALUE"),
        ("school?=4", "`=4` is not an option"),
        ("school?digits=4&digits=5", "duplicate option `digits`"),
        ("school?seed=4", "`seed` cannot be set after the `\\?`"),
    ],
)
def test_a_wrong_spec_gets_a_suggestion(spec: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(spec)


def test_an_option_may_hold_any_text() -> None:
    assert open_task("school:addition?styles=no_cot=70,full=30", 3).spec == (
        "school:addition?styles=no_cot=70,full=30",
        3,
    )


@pytest.mark.parametrize("method", ["train_problems", "demonstrations", "pretraining_text"])
def test_an_undefined_method_is_named_with_the_line_of_the_class(method: str) -> None:
    class Bare(Task):
        name = "bare"

    with pytest.raises(
        SchoolError, match=rf"task bare has no .*test_base.py:\d+: add the method {method}\(step, count\)"
    ):
        getattr(Bare(), method)(0, 1)


# ---- grading


def rollouts(*keys: tuple[int, int, int]) -> list[Rollout]:
    return [
        Rollout(Sums().train_problems(step, problem + 1)[problem], Key(0, "t", step, problem, sample), (), (), ())
        for step, problem, sample in keys
    ]


def test_rollouts_of_one_problem_are_one_group_in_order() -> None:
    all_rollouts = rollouts((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0))
    groups = grade_rollouts(all_rollouts, Sums(), lambda rollout: Completion(None, f"\\boxed{{{rollout.key.sample}}}"))
    assert [group.problem.id for group in groups] == ["0+0", "0+1", "1+0", "1+1"]
    assert [group.rewards for group in groups] == [(1.0, 0.0), (0.0, 1.0), (0.0,), (0.0,)]
    assert [rollout for group in groups for rollout in group.rollouts] == all_rollouts


def test_different_problems_are_never_one_group() -> None:
    first, second = rollouts((0, 0, 0), (1, 0, 0))
    second = Rollout(second.problem, first.key, (), (), ())
    assert len(grade_rollouts([first, second], Sums(), lambda rollout: Completion(None, ""))) == 2


def test_no_rollouts_are_no_groups() -> None:
    assert grade_rollouts([], Sums(), lambda rollout: Completion(None, "")) == []


def test_an_exception_in_a_verifier_is_never_a_zero() -> None:
    (group,) = grade_rollouts(
        rollouts((0, 0, 0)), Sums(lambda problem, answer: 1 / 0), lambda rollout: Completion(None, "")
    )
    (verdict,) = group.verdicts
    assert verdict.reward is None
    assert re.fullmatch(r".*test_base.py:\d+: ZeroDivisionError: division by zero", verdict.reason)


# ---- audits


def test_a_sound_task_passes() -> None:
    progress = []
    audit = audit_task(Sums(), 40, lambda done, total: progress.append((done, total)))
    assert audit.passed
    assert (audit.num_problems, audit.references_correct, audit.perturbed_rejected, audit.empty_rejected) == (
        40,
        40,
        40,
        40,
    )
    assert (audit.truncated_rejected, audit.nonsense_rejected) == (40, 40)
    assert progress[-1] == (200, 200)
    assert "40 of 40 references correct" in str(audit)


@pytest.mark.parametrize(
    ("accepts", "count", "failure"),
    [
        (lambda problem, answer: False, "references_correct", "reference '.*' got reward 0"),
        (lambda problem, answer: answer[-2:-1].isdigit(), "perturbed_rejected", "perturbed '.*' got reward 1"),
        (lambda problem, answer: problem.reference in answer or not answer, "empty_rejected", "empty '' got reward 1"),
        (
            lambda problem, answer: f"{{{problem.reference}" in answer,
            "truncated_rejected",
            "truncated '.*' got reward 1",
        ),
        (lambda problem, answer: "z" in answer or "}" in answer, "nonsense_rejected", "nonsense '.*' got reward 1"),
        (lambda problem, answer: 1 / 0, "empty_rejected", "empty '' could not be graded: .*: ZeroDivisionError"),
    ],
)
def test_each_kind_of_mistake_is_found(accepts, count: str, failure: str) -> None:
    audit = audit_task(Sums(accepts), 8)
    assert getattr(audit, count) == 0
    assert not audit.passed
    assert any(re.search(failure, message) for _, message in audit.failures)


def test_partial_rewards_for_wrong_answers_are_no_failure() -> None:
    class Partial(Sums):
        def grade(self, problem: Problem, completion: Completion) -> Verdict:
            return Verdict(max(0.1, super().grade(problem, completion).reward or 0.0))

    assert Partial().grade(Sums().train_problems(0, 1)[0], Completion(None, "x")) == Verdict(0.1)
    assert audit_task(Partial(), 8).passed


def test_a_task_without_problems_cannot_be_checked() -> None:
    class Empty(Sums):
        def audit_problems(self, limit: int | None = None) -> list[Problem]:
            return []

    with pytest.raises(SchoolError, match="task sums has no problems"):
        audit_task(Empty())


def test_generated_problems_are_sampled() -> None:
    assert audit_task(Sums()).num_problems == 1_010
