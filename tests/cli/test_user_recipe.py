"""A recipe in a user's own file: trained, resumed, repeated and estimated like a packaged one, with errors that name
the line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.config import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.runs.atomic_io import read_json
from schoolhouse.runs.inspect import compare
from schoolhouse.runs.run import read_metrics

RECIPE = '''\
"""Policy gradient with an advantage of one."""

from pathlib import Path

from schoolhouse import (
    BaseConfig, Optimizer, Policy, grade, open_task, pack, policy_gradient, prompt_groups, rollouts_of, token_mean
)


class Config(BaseConfig):
    model: str
    """Folder of the model."""
    seed: int = 0
    steps: int = 3
    optimizer: Optimizer = Optimizer(learning_rate=1e-3)


def advantage_rows(rollouts):
    return [[1.0] * len(rollout) for rollout in rollouts]


def my_recipe(config, run):
    policy = run.restore(Policy.load(run.model_path(config.model), "float32", config.optimizer))
    task = open_task("school:addition?digits=1")
    parse = policy.conversation.parse_completion
    for step in run.steps(range(run.step, config.steps), save=policy, every=1):
        if step == 1 and Path("crash").exists():
            raise RuntimeError("crash")
        problems = task.train_problems(step, 2)
        prompts = prompt_groups(policy.conversation, problems, 2, seed=config.seed, purpose="train", step=step)
        groups = grade(policy.extend(prompts, max_new_tokens=4), task, parse)
        rollouts = rollouts_of(groups)
        batches = pack(rollouts, token_mean(rollouts), advantage=advantage_rows(rollouts))
        run.record(step, groups, parse, **policy.update(batches, policy_gradient(), learning_rate=1e-3))
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    conversation = Conversation(train_tokenizer(["1 + 2 = 3, 4 + 5 = 9"] * 9, 300))
    Policy.create(ModelConfig(300, 32, 32, 1, 1, 1, 32, 256), conversation).save(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "my_recipe.py").write_text(RECIPE)
    return tmp_path


def school(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "schoolhouse", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "COLUMNS": "100"})


def line_of(text: str) -> int:
    """Number of the line of the recipe that holds a text."""
    return next(number for number, line in enumerate(RECIPE.splitlines(), 1) if text in line)


def test_a_user_recipe_trains_and_repeats_from_another_folder(here: Path, model: Path) -> None:
    done = school(here, "train", "my_recipe.py", "--model", model, "--steps", 2, "--optimizer.learning_rate", "1e-4")
    assert (done.returncode, done.stderr) == (0, "")
    run = here / "runs" / "my_recipe"
    assert [line["step"] for line in read_metrics(run)] == [0, 1]
    assert len(list((run / "rollouts").iterdir())) == 2
    (here / "elsewhere").mkdir()
    done = school(here / "elsewhere", "repeat", run, "--dir", here / "again")
    assert done.returncode == 0, done.stderr
    assert "the same bits" in done.stdout
    assert "my_recipe.py, finished, 2 of 2 steps" in school(here, "runs").stdout


def test_a_user_recipe_has_help_and_an_estimate(here: Path, model: Path) -> None:
    done = school(here, "train", "my_recipe.py", "--help")
    assert "Policy gradient with an advantage of one." in done.stdout
    assert "--optimizer.learning_rate FLOAT" in done.stdout
    done = school(here, "estimate", "my_recipe.py", "--model", model, "--steps", 4)
    assert done.returncode == 0, done.stderr
    assert "4 steps of " in done.stdout


def test_a_crashed_user_recipe_resumes_to_the_same_bits(here: Path, model: Path) -> None:
    (here / "crash").touch()
    crashed = school(here, "train", "my_recipe.py", "--model", model, "--dir", "crashed")
    line = line_of("raise RuntimeError")
    assert crashed.stderr == f"school: error: my_recipe.py:{line}: in my_recipe: RuntimeError: crash\n"
    (here / "crash").unlink()
    for folder in ("crashed", "whole"):
        done = school(here, "train", here / "my_recipe.py", "--model", model, "--dir", folder)
        assert (done.returncode, done.stderr) == (0, "")
    assert compare(here / "whole", here / "crashed") == []


@pytest.mark.fault("config changed")
def test_a_changed_recipe_file_is_refused_on_resume(here: Path, model: Path) -> None:
    (here / "crash").touch()
    assert school(here, "train", "my_recipe.py", "--model", model).returncode == 2
    (here / "crash").unlink()
    recipe = here / "my_recipe.py"
    recipe.write_text(RECIPE.replace("[1.0]", "[2.0]"))
    done = school(here, "train", "my_recipe.py", "--model", model)
    assert done.returncode == 2
    assert f"{recipe} has changed since the run runs/my_recipe began" in done.stderr
    assert "start a new run in another folder with --dir" in done.stderr
    recipe.write_text(RECIPE)
    assert school(here, "train", "my_recipe.py", "--model", model).returncode == 0
    assert read_json(here / "runs" / "my_recipe" / "manifest.json")["recipe"] == "my_recipe.py"


@pytest.mark.parametrize(
    "old, new, place, message",
    [
        ("(config, run)", "(config)", "", r"`my_recipe` must take 2 arguments \(config, run\), but it needs 1"),
        (
            "config.steps",
            "config.step_count",
            "in my_recipe",
            "AttributeError: 'Config' object has no attribute 'step_",
        ),
        ("[1.0] * len(rollout)", "[1.0] * 3", "in my_recipe", r"row 0 of .advantage. has 3 numbers"),
        ("rows(rollouts):", "rows(rollouts, scale):", "in my_recipe", "TypeError: advantage_rows.* 1 .*: 'scale'"),
        (
            "for rollout in rollouts]",
            "for rollout in rollout_list]",
            "in advantage_rows",
            "NameError: .*'rollout_list'",
        ),
    ],
    ids=["signature of the recipe", "missing config key", "shape of an advantage row", "signature", "helper"],
)
def test_an_error_in_the_file_is_one_line_with_its_place(
    here: Path, model: Path, old: str, new: str, place: str, message: str
) -> None:
    assert old in RECIPE
    (here / "my_recipe.py").write_text(RECIPE.replace(old, new))
    done = school(here, "train", "my_recipe.py", "--model", model)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    found = re.match(rf"school: error: my_recipe\.py:(\d+): (?:{place}: )?{message}", done.stderr)
    assert found, done.stderr
    line = {"in advantage_rows": "return [[1.0]", "": "def my_recipe"}.get(place)
    culprit = line or ("range(run.step" if old == "config.steps" else "batches = pack(")
    assert int(found[1]) == line_of(culprit)


def test_debug_shows_the_whole_traceback(here: Path, model: Path) -> None:
    (here / "my_recipe.py").write_text(RECIPE.replace("[1.0] * len(rollout)", "[1.0] * 3"))
    done = school(here, "train", "my_recipe.py", "--model", model, "--debug")
    assert "Traceback" in done.stderr
    assert "packing.py" in done.stderr
