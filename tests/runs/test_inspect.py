"""Run folders from outside: state, damage in words, and whether two are the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schoolhouse.config import BaseConfig
from schoolhouse.runs.inspect import check, compare, find_runs, inspect
from schoolhouse.runs.run import Run
from schoolhouse.types import SchoolError


class Config(BaseConfig):
    steps: int = 4


class Weights:
    """Something to save that is written like a model."""

    def save(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights" * 100)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def make(folder: Path, steps: int = 4, offset: float = 0.0) -> Path:
    config = Config()
    with Run.open(folder, config, "grpo") as run:
        for step in run.steps(range(steps), Weights(), every=2):
            run.record(step, loss=step + offset)
        if steps == config.steps:
            run.finish()
    return folder


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    seen = inspect(make(tmp_path / "run"))
    assert (seen.recipe, seen.state, seen.steps, seen.result) == ("grpo", "finished", (4, 4), "loss 3.000")


def test_a_run_that_somebody_holds_is_running_and_else_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_inspect import *\n"
        "with Run.open(Path(sys.argv[1]), Config(), 'grpo') as run:\n    print('open', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "run"), str(Path(__file__).parent)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        assert inspect(tmp_path / "run").state == "running"
        process.kill()
    assert inspect(tmp_path / "run").state == "killed"


def test_to_look_at_what_nobody_holds_needs_no_right_to_write(tmp_path: Path, monkeypatch) -> None:
    folder = make(tmp_path / "run")
    opened = Path.open

    def guarded(self: Path, mode: str = "r", *more, **named):
        if mode != "r" and "b" not in mode:
            raise PermissionError(13, "Permission denied")
        return opened(self, mode, *more, **named)

    monkeypatch.setattr(Path, "open", guarded)
    assert inspect(folder).state == "finished"


def test_runs_are_found_wherever_they_are(tmp_path: Path) -> None:
    runs = [make(tmp_path / name) for name in ("a", "b/c", "b/d")]
    assert find_runs(tmp_path) == runs
    assert find_runs(tmp_path / "a") == runs[:1]


def test_a_whole_run_has_no_faults(tmp_path: Path) -> None:
    assert check(make(tmp_path / "run")) == []


@pytest.mark.parametrize(
    "name, harm, words",
    [
        ("metrics.jsonl", lambda path: path.write_bytes(path.read_bytes()[:-3]), "ends in the middle of a line"),
        ("metrics.jsonl", lambda path: path.write_text("no json\n"), "metrics.jsonl:1 is damaged"),
        ("manifest.json", lambda path: path.write_text("{"), "manifest.json is damaged"),
        ("config.yaml", lambda path: path.write_text("- 1"), "config.yaml is damaged"),
        ("checkpoints/000004/model.safetensors", lambda path: path.write_bytes(b"other"), "its checksum has changed"),
        ("checkpoints/000004/model.safetensors", Path.unlink, "is missing"),
        ("checkpoints/000006.partial", Path.mkdir, "left over from an interrupted save"),
    ],
)
@pytest.mark.fault("checkpoint damaged")
def test_damage_is_told_in_words(tmp_path: Path, name: str, harm, words: str) -> None:
    folder = make(tmp_path / "run")
    harm(folder / name)
    (told,) = check(folder)
    assert words in told
    assert name in told


def test_to_look_changes_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    (folder / "lock").unlink()
    before = sorted(folder.rglob("*"))
    inspect(folder)
    assert sorted(folder.rglob("*")) == before


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(SchoolError, match="KeyError: 'step'"):
        inspect(folder)


def test_the_same_runs_are_the_same(tmp_path: Path) -> None:
    assert compare(make(tmp_path / "a"), make(tmp_path / "b")) == []


def test_a_difference_is_found_where_it_begins(tmp_path: Path) -> None:
    (told,) = compare(make(tmp_path / "a"), make(tmp_path / "b", offset=0.5))
    assert told == "metrics.jsonl differs from line 1 on: loss: 0.0 there, 0.5 now"


def test_weights_and_rollouts_count(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a"), make(tmp_path / "b")
    (one / "checkpoints/000004/model.safetensors").write_bytes(b"x")
    (other / "rollouts").mkdir()
    (other / "rollouts/000000.jsonl").write_text(json.dumps({"reward": 1}) + "\n")
    told = compare(one, other)
    assert told == [
        "checkpoints/000004/model.safetensors differs",
        f"rollouts/000000.jsonl is only in {other}",
    ]


@pytest.mark.fault("not repeatable")
def test_a_run_is_repeated_by_one_command(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    model = "{width: 32, layers: 1, heads: 2, key_heads: 1, head_dim: 16, inner: 64, longest: 64}"
    config.write_text(f"task: school:facts\nsteps: 3\nbatch: 4\ncontext: 32\nvocabulary: 300\nmodel: {model}\n")
    school = [sys.executable, "-m", "schoolhouse"]
    run = tmp_path / "run"
    subprocess.run([*school, "train", "pretrain", config, "--dir", run], check=True, capture_output=True)
    said = subprocess.run([*school, "repeat", run], check=True, capture_output=True, text=True)
    assert "the same bits: weights, metrics and rollouts" in said.stdout
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 2', '"step": 2, "more": 1'))
    shutil.rmtree(tmp_path / "run-repeat")
    said = subprocess.run([*school, "repeat", run], check=False, capture_output=True, text=True)
    assert said.returncode == 2
    assert "metrics.jsonl differs from line 3 on: more: 1 there, absent now" in said.stderr
    assert "nothing that a manifest records differs" in said.stderr
    told = subprocess.run([*school, "runs", tmp_path], check=True, capture_output=True, text=True).stdout
    assert f"{run}: pretrain, finished, 3 of 3 steps" in told
    told = subprocess.run([*school, "doctor", run], check=True, capture_output=True, text=True).stdout
    assert "processor" in told
    assert "whole; pretrain, finished" in told
