"""What docs/tasks.md shows is what runs."""

import textwrap
from pathlib import Path

from schoolhouse.tasks.audit import audit_task
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.school.task import FAMILIES
from schoolhouse.types import Completion

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


def test_the_class_of_the_page_is_a_task_that_passes_its_own_check(tmp_path: Path):
    shown = PAGE.partition("runs this one -->")[2].partition("<!-- end -->")[0]
    (tmp_path / "mytask.py").write_text(textwrap.dedent(shown))
    task = open_task(f"python:{tmp_path / 'mytask.py'}?most=50")
    assert [problem.id for problem in task.eval_problems(2)] == ["double 0", "double 1"]
    assert max(int(problem.reference) for problem in task.train_problems(0, 200)) <= 100
    assert audit_task(task, 20).passed


def test_the_reward_functions_of_the_page_are_tasks(tmp_path: Path):
    shown = PAGE.partition("## Your own reward")[2].partition("    school train")[0]
    (tmp_path / "reward.py").write_text(textwrap.dedent(shown))
    (tmp_path / "problems.jsonl").write_text('{"prompt": "Double 4.", "reference": "8"}\n')
    for name in ("reward", "compute_score"):
        task = open_task(f"python:{tmp_path / 'reward.py'}:{name}?data={tmp_path / 'problems.jsonl'}&holdout=all")
        (problem,) = task.eval_problems()
        scores = [task.grade(problem, Completion("thought", said)).reward for said in ("8", "9")]
        assert scores == [1.0, 0.0]


def test_every_family_stands_on_the_page_with_its_dial():
    for family in FAMILIES.values():
        for name, dial in family.difficulty.items():
            (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{family.name}` |")]
            assert f"| `{name}` {dial.default}" in row
