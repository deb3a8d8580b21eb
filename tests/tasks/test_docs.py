"""Every code block of docs/tasks.md runs, in order, in one folder."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from schoolhouse.cli.main import main
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.registry import open_task
from schoolhouse.tasks.school.family import STYLES
from schoolhouse.tasks.school.task import FAMILIES
from schoolhouse.types import Completion

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHORT = "--steps 1 --prompts_per_step 2 --group_size 2 --sampling.max_new_tokens 8"


def write_file(block: str) -> None:
    """A Python block as the file that its first line names."""
    name = re.match(r"# (\w+\.py)\n", block)
    assert name, f"the first line must be a comment with the name of the file: {block[:60]!r}"
    Path(name[1]).write_text(block)


def words_of(command: str) -> list[str]:
    program, *words = shlex.split(command)
    assert program == "school", command
    return words


def normalized(text: str) -> str:
    """The text with its white space and durations made equal."""
    return re.sub(r"\bin [\d.]+ s\b", "in 0 s", " ".join(text.split()))


def test_every_code_block_of_the_page_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sft_model: Callable[[str], Path],
) -> None:
    model = str(sft_model("school:facts"))
    monkeypatch.chdir(tmp_path)
    Path("problems.jsonl").write_text(next(block for language, block in BLOCKS if language == "json"))
    num_runs = 0
    for language, block in BLOCKS:
        if language == "python":
            write_file(block)
        elif language == "json":
            Path("problems.jsonl").write_text(block)
        elif language == "bash":
            for command in block.splitlines():
                words = words_of(command.replace("MODEL", model))
                if words[0] == "train":
                    num_runs += 1
                    words += [*SHORT.split(), "--dir", f"runs/{num_runs}"]
                assert main(words) == 0, (command, capsys.readouterr())
        else:
            assert language == "console", f"a code block has the language {language!r}"
            command, *expected = block.removeprefix("$ ").splitlines()
            capsys.readouterr()
            main(words_of(command))
            captured = capsys.readouterr()
            output = normalized(captured.out + captured.err)
            assert [line for line in expected if normalized(line) not in output] == [], output
    assert len(list(Path("runs").glob("*/metrics.jsonl"))) == num_runs == 4
    assert {language for language, _ in BLOCKS} == {"python", "json", "bash", "console"}


def test_the_page_names_every_public_method_of_a_task() -> None:
    methods = {name for name, value in vars(Task).items() if callable(value) and not name.startswith("_")}
    assert [name for name in methods - {"audit_problems"} if f"`{name}" not in PAGE] == []


def test_the_reward_functions_of_the_page_grade_answers(tmp_path: Path) -> None:
    files = {
        name: block for _, block in BLOCKS if (name := block.partition("\n")[0].removeprefix("# ")).endswith(".py")
    }
    (tmp_path / "problems.jsonl").write_text('{"prompt": "Double 4.", "reference": "8"}\n')
    for name in ("trl_reward.py", "verl_reward.py"):
        (tmp_path / name).write_text(files[name])
        task = open_task(f"python:{tmp_path / name}?data={tmp_path / 'problems.jsonl'}&holdout=all")
        (problem,) = task.eval_problems()
        rewards = [task.grade(problem, Completion("a thought", f"\\boxed{{{answer}}}")).reward for answer in "89"]
        assert rewards == [1.0, 0.0]


def test_the_task_class_of_the_page_takes_its_option(tmp_path: Path) -> None:
    (code,) = [block for _, block in BLOCKS if block.startswith("# my_task.py")]
    (tmp_path / "my_task.py").write_text(code)
    task = open_task(f"python:{tmp_path / 'my_task.py'}?largest=50")
    assert [problem.id for problem in task.eval_problems(2)] == ["double 0", "double 1"]
    assert max(int(problem.reference) for problem in task.train_problems(0, 200)) <= 100


def test_the_page_has_every_family_with_its_difficulty_and_every_style() -> None:
    for family in FAMILIES.values():
        for name, difficulty in family.difficulty.items():
            (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{family.name}` |")]
            assert f"| `{name}` {difficulty.default}" in row
    assert [style for style in STYLES if f"\n| `{style}` |" not in PAGE] == []
