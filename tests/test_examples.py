"""Every example runs as its README says, with a small model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from live_server import running_server

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SHORT = ("--steps", "2", "--sampling.max_new_tokens", "16", "--prompts_per_step", "4", "--group_size", "4")
PROBLEMS = str(EXAMPLES / "problems.jsonl")


@pytest.fixture(scope="module")
def model(sft_model: Callable[[str], Path]) -> str:
    return str(sft_model("school:facts"))


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readme_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f"`{path.name}`" not in text] == []


def test_grpo_on_a_jsonl_file(model: str, tmp_path: Path) -> None:
    out = run(tmp_path, str(EXAMPLES / "grpo_on_jsonl.py"), model, PROBLEMS, "2")
    assert out.count("reward") == 2
    assert len((EXAMPLES / "grpo_on_jsonl.py").read_text().splitlines()) <= 40


def test_a_multi_turn_environment(model: str, tmp_path: Path) -> None:
    assert run(tmp_path, str(EXAMPLES / "multi_turn.py"), model, "2").count("won") == 2


def test_a_recipe_of_ones_own_is_resumed_and_repeated(model: str, tmp_path: Path) -> None:
    words = ("-m", "schoolhouse", "train", str(EXAMPLES / "my_recipe.py"), "--model", model)
    words += ("--task", f"jsonl:{PROBLEMS}?holdout=none", *SHORT)
    assert "the model is in" in run(tmp_path, *words)
    assert "is already finished" in run(tmp_path, *words)
    folder = tmp_path / "runs" / "my_recipe"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert "same bits" in run(tmp_path, "-m", "schoolhouse", "repeat", str(folder))


@pytest.mark.parametrize(
    "task", [f"python:{EXAMPLES}/my_task.py", f"python:{EXAMPLES}/my_reward.py:short_and_right?data={PROBLEMS}"]
)
def test_a_task_and_a_reward_of_ones_own(model: str, tmp_path: Path, task: str) -> None:
    assert "the model is in" in run(
        tmp_path, "-m", "schoolhouse", "train", "grpo", "--model", model, "--task", task, *SHORT
    )


def test_a_task_of_ones_own_grades_its_own_references(tmp_path: Path) -> None:
    assert "references correct" in run(
        tmp_path, "-m", "schoolhouse", "task", f"python:{EXAMPLES}/my_task.py", "--check"
    )


def test_a_search_of_ones_own(model: str, tmp_path: Path) -> None:
    words = ("solve", model, "Sum 4 5", "--task", f"python:{EXAMPLES}/my_task.py", "--show")
    assert "tokens; " in run(tmp_path, "-m", "schoolhouse", *words, "--search", f"{EXAMPLES}/my_search.py")


def test_openai_client(model: str, tmp_path: Path) -> None:
    with running_server("serve", model, ready_path="/health") as server:
        run(tmp_path, str(EXAMPLES / "openai_client.py"), f"{server.url}/v1")
