"""Word problems from templates: their solutions, their splits and their options."""

import re
from collections.abc import Callable
from operator import add, floordiv, mul, sub

import pytest

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.word_problems import TEMPLATES, WordProblems
from schoolhouse.types import SchoolError


def word_problems(options: str = "", seed: int = 0) -> WordProblems:
    task = open_task(f"word_problems?size=400{options}", seed)
    assert isinstance(task, WordProblems)
    return task


@pytest.mark.parametrize("templates", TEMPLATES)
def test_every_step_of_a_thought_is_right_and_the_last_step_gives_the_reference(templates: str) -> None:
    operations: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}
    for demonstration in word_problems(f"&templates={templates}").all_demonstrations:
        steps = re.findall(r"(\d+) (.) (\d+) = (\d+)\.", demonstration.thought or "")
        assert len(steps) == int(demonstration.problem.family[0])
        for x, operator, y, result in steps:
            assert operations[operator](int(x), int(y)) == int(result) > 0
        assert steps[-1][3] == demonstration.problem.reference


def test_division_leaves_no_remainder() -> None:
    thoughts = " ".join(each.thought or "" for each in word_problems().all_demonstrations)
    divisions = re.findall(r"(\d+) / (\d+)", thoughts)
    assert divisions
    assert all(int(x) % int(y) == 0 for x, y in divisions)


def test_the_numbers_of_a_first_step_are_in_the_question() -> None:
    for each in word_problems().all_demonstrations:
        x, _, y = (each.thought or "").split()[:3]
        assert {x, y} <= set(re.findall(r"\d+", each.problem.messages[0].content))


@pytest.mark.parametrize("templates", TEMPLATES)
def test_grading_accepts_references_and_rejects_everything_else(templates: str) -> None:
    audit = audit_task(word_problems(f"&templates={templates}"))
    assert not audit.failures


def test_held_out_problems_are_never_practised() -> None:
    task = word_problems()
    held_out = {problem.id for problem in task.eval_problems()}
    practised = {problem.id for problem in task.train_problems(0, 2 * task.size)}
    demonstrated = {each.problem.id for each in task.demonstrations(0, 2 * task.size)}
    assert held_out
    assert not held_out & (practised | demonstrated)


def test_unseen_templates_share_no_text_with_practised_templates() -> None:
    first_words = [{" ".join(template.text.split()[:8]) for template in group} for group in TEMPLATES.values()]
    assert not first_words[0] & first_words[1]


def test_the_seed_changes_the_order_and_not_the_problems() -> None:
    one, two = word_problems(seed=0), word_problems(seed=1)
    assert one.eval_problems() == two.eval_problems()
    assert one.train_problems(0, 8) != two.train_problems(0, 8)


def test_steps_select_the_problems() -> None:
    assert {problem.family for problem in word_problems("&steps=2").all_problems} == {"2-step"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("word_problems?step=2", "unknown option `step`; did you mean `steps`"),
        ("word_problems?steps=3", "option `steps` is `3`; it must be 1, 2 or 1-2"),
        ("word_problems?templates=new", "option `templates` is `new`; it must be practised or unseen"),
        ("word_problems?size=0", "option `size` is `0`; it must be a number from 1 to 20000"),
        ("word_problems?holdout=half", "option `holdout` is `half`"),
        ("word_problems:easy", "the task `word_problems` has no families"),
        ("wordproblems", "did you mean `word_problems`"),
    ],
)
def test_wrong_options_are_refused(spec: str, message: str) -> None:
    with pytest.raises(SchoolError, match=message):
        open_task(spec)
