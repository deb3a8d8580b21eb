"""Inspection of run folders: state, damage, and whether two are equal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schoolhouse.config import BaseConfig
from schoolhouse.runs.inspect import check, compare, find_runs, inspect
from schoolhouse.runs.pipeline import repeat_run
from schoolhouse.runs.run import Run
from schoolhouse.types import SchoolError


class Config(BaseConfig):
    steps: int = 4


class Weights:
    """A state whose file looks like a model."""

    def save(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights" * 100)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def make_run(folder: Path, steps: int = 4, offset: float = 0.0) -> Path:
    config = Config()
    with Run.open(folder, config, "grpo") as run:
        for step in run.steps(range(steps), Weights(), every=2):
            run.record(step, loss=step + offset)
        if steps == config.steps:
            run.finish()
    return folder


def test_the_status_of_a_finished_run(tmp_path: Path) -> None:
    status = inspect(make_run(tmp_path / "run"))
    assert (status.recipe, status.state, status.steps, status.result) == ("grpo", "finished", (4, 4), "loss 3.000")


def test_a_locked_run_is_running_and_an_unlocked_one_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_inspect import *\n"
        "with Run.open(Path(sys.argv[1]), Config(), 'grpo') as run:\n    print('open', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        assert inspect(tmp_path / "run").state == "running"
        process.kill()
    assert inspect(tmp_path / "run").state == "killed"


def test_inspection_needs_no_write_permission(tmp_path: Path, monkeypatch) -> None:
    folder = make_run(tmp_path / "run")
    path_open = Path.open

    def read_only(self: Path, mode: str = "r", *args, **kwargs):
        if mode != "r" and "b" not in mode:
            raise PermissionError(13, "Permission denied")
        return path_open(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", read_only)
    assert inspect(folder).state == "finished"


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("a", "b/c", "b/d")]
    assert find_runs(tmp_path) == runs
    assert find_runs(tmp_path / "a") == runs[:1]


def test_an_intact_run_has_no_problems(tmp_path: Path) -> None:
    assert check(make_run(tmp_path / "run")) == []


@pytest.mark.parametrize(
    "name, damage, words",
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
def test_damage_is_described_with_the_file(tmp_path: Path, name: str, damage, words: str) -> None:
    folder = make_run(tmp_path / "run")
    damage(folder / name)
    (problem,) = check(folder)
    assert words in problem
    assert name in problem


def test_inspection_changes_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "lock").unlink()
    before = sorted(folder.rglob("*"))
    inspect(folder)
    assert sorted(folder.rglob("*")) == before


def test_metrics_without_a_step_are_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(SchoolError, match="KeyError: 'step'"):
        inspect(folder)


def test_equal_runs_have_no_differences(tmp_path: Path) -> None:
    assert compare(make_run(tmp_path / "a"), make_run(tmp_path / "b")) == []


def test_the_first_differing_line_is_shown(tmp_path: Path) -> None:
    (difference,) = compare(make_run(tmp_path / "a"), make_run(tmp_path / "b", offset=0.5))
    assert difference == "metrics.jsonl differs from line 1 on: loss: 0.0 -> 0.5"


def test_weights_and_rollouts_are_compared(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (one / "checkpoints/000004/model.safetensors").write_bytes(b"x")
    (other / "rollouts").mkdir()
    (other / "rollouts/000000.jsonl").write_text(json.dumps({"reward": 1}) + "\n")
    assert compare(one, other) == [
        "checkpoints/000004/model.safetensors differs",
        f"rollouts/000000.jsonl is only in {other}",
    ]


@pytest.mark.fault("not repeatable")
def test_repeat_finds_equal_runs_and_differences(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    size = "hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, head_dim: 16, intermediate_size: 64"
    model = f"{{{size}, max_seq_len: 64}}"
    config.write_text(f"task: school:facts\nsteps: 3\nbatch_size: 4\nseq_len: 32\nvocab_size: 300\nmodel: {model}\n")
    school = [sys.executable, "-m", "schoolhouse"]
    run = tmp_path / "run"
    subprocess.run([*school, "train", "pretrain", config, "--dir", run], check=True, capture_output=True)
    done = subprocess.run([*school, "repeat", run], check=True, capture_output=True, text=True)
    assert "the same bits: weights, metrics and rollouts" in done.stdout
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 2', '"step": 2, "more": 1'))
    shutil.rmtree(tmp_path / "run-repeat")
    done = subprocess.run([*school, "repeat", run], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "metrics.jsonl differs from line 3 on: more: 1 -> absent" in done.stderr
    assert "the environments are the same" in done.stderr
    printed = subprocess.run([*school, "runs", tmp_path], check=True, capture_output=True, text=True).stdout
    assert f"{run}: pretrain, finished, 3 of 3 steps" in printed
    printed = subprocess.run([*school, "doctor", run], check=True, capture_output=True, text=True).stdout
    assert "processor" in printed
    assert "intact; pretrain, finished" in printed


def test_a_run_of_another_format_is_not_inspected_and_not_repeated(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(SchoolError, match=r"manifest.json has format 2, but .* reads format 1: start a new run in"):
        inspect(folder)
    with pytest.raises(SchoolError, match="has format 2"):
        repeat_run(folder, tmp_path / "again")
    (problem,) = check(folder)
    assert "has format 2" in problem
    assert not (tmp_path / "again").exists()
