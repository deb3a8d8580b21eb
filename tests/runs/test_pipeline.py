"""Pipelines: stages in order, an evaluation after each, resumed after a stop, refused before they start."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from schoolhouse import recipes
from schoolhouse.runs import pipeline
from schoolhouse.runs.pipeline import find_pipeline, run_pipeline
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError

RECIPE = '''
"""A recipe that creates or loads a tiny model and learns nothing."""

import os, signal
from pathlib import Path
from schoolhouse.config import BaseConfig
from schoolhouse.model.config import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer


class Config(BaseConfig):
    model: str | None = None
    seed: int = 0
    steps: int = 2
    task: str = ""
    reward: float | None = None
    deep: dict[str, str] = {}


def toy(c, run):
    start = run.latest_checkpoint() or (Path(c.model) if c.model else None)
    if start:
        policy = run.restore(Policy.load(start, "float32"))
    else:
        conversation = Conversation(train_tokenizer(["1+1=2"], 300))
        policy = Policy.create(ModelConfig(300, 16, 16, 1, 1, 1, 16), conversation, c.seed, "float32")
    for step in run.steps(range(run.step, c.steps), save=policy, every=1):
        if c.reward is not None and step == 1 and Path(os.environ.get("KILL_ME", "/none")).exists():
            Path(os.environ["KILL_ME"]).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        run.record(step, **({} if c.reward is None else {"reward": c.reward}))
'''

YAML = """\
seed: 3
eval: {task: "school:addition", problems: 3, samples: 2, max_new_tokens: 3}
stages:
  - name: first
    recipe: toy
    config: {steps: 1}
  - {name: second, recipe: toy}
  - name: third
    recipe: toy
    config:
      model: stage:first
      reward: 0.5
      deep: {teacher: "stage:second"}
"""


@pytest.fixture
def pipeline_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pipeline above as a file, with its recipe among the packaged ones."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "toy.py").write_text(RECIPE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path / "recipes")])
    monkeypatch.delitem(sys.modules, "schoolhouse.recipes.toy", raising=False)
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    return path


def config_of(folder: Path) -> str:
    return (folder / "config.yaml").read_text()


def test_stages_run_in_order_and_pass_on_their_models(
    pipeline_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    report = run_pipeline(pipeline_file, None, folder)
    assert [stage["name"] for stage in report["stages"]] == ["first", "second", "third"]
    assert f"model: {folder}/first/checkpoints/000001" in config_of(folder / "third")
    assert f"teacher: {folder}/second/checkpoints/000002" in config_of(folder / "third")
    assert all("seed: 3" in config_of(folder / name) for name in ("first", "second", "third"))
    for name in ("first", "second", "third"):
        assert json.loads((folder / name / "evaluation.json").read_text())["problems"] == 3
    assert json.loads((folder / "report.json").read_text()) == report
    assert 50e6 < report["peak_memory_bytes"] < 50e9
    assert report["seed"] == 3
    assert report["seconds"] >= sum(stage["seconds"] for stage in report["stages"])
    assert (folder / "figure.png").exists()
    printed = capsys.readouterr().out
    assert str(folder / "figure.png") in printed
    assert f"school chat {folder}/third" in printed


def test_finished_stages_are_skipped(pipeline_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run_pipeline(pipeline_file, None, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*/*.json*")}
    assert run_pipeline(pipeline_file, None, folder) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*/*.json*")} == before


def test_a_killed_pipeline_resumes_in_its_stage(pipeline_file: Path, tmp_path: Path) -> None:
    folder, marker = tmp_path / "run", tmp_path / "marker"
    marker.touch()
    code = (
        "import sys\nfrom schoolhouse import recipes\nfrom schoolhouse.runs.pipeline import run_pipeline\n"
        "recipes.__path__ = [*recipes.__path__, sys.argv[1]]\nrun_pipeline(sys.argv[2], None, sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "recipes"), str(pipeline_file), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "KILL_ME": str(marker)}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_metrics(folder / "third")) == 1
    assert not (folder / "report.json").exists()
    run_pipeline(pipeline_file, None, folder)
    assert len(read_metrics(folder / "third")) == 2
    assert (folder / "report.json").exists()


def test_a_seed_argument_overrides_that_of_the_file(pipeline_file: Path, tmp_path: Path) -> None:
    pipeline_file.write_text(YAML.replace("config: {steps: 1}", "config: {steps: 1, seed: 9}"))
    report = run_pipeline(pipeline_file, 4, tmp_path / "run")
    assert report["seed"] == 4
    assert "seed: 4" in config_of(tmp_path / "run" / "second")
    assert "seed: 9" in config_of(tmp_path / "run" / "first")  # a stage may set its own


def test_another_pipeline_in_the_same_folder_is_refused(pipeline_file: Path, tmp_path: Path) -> None:
    run_pipeline(pipeline_file, None, tmp_path / "run")
    pipeline_file.write_text(YAML.replace("problems: 3", "problems: 4"))
    with pytest.raises(SchoolError, match=r"eval.problems: 3 -> 4"):
        run_pipeline(pipeline_file, None, tmp_path / "run")


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "recipe: toy\n    config: {steps: 1}",
            "recipe: toi",
            r"mine.yaml:5: unknown recipe `toi`; did you mean `toy`",
        ),
        ("stage:first", "stage:fist", r"mine.yaml:11: `stage:fist` names an unknown stage; did you mean `first`"),
        ("stage:second", "stage:third", r"mine.yaml:13: `stage:third` is not an earlier stage"),
        ("{steps: 1}", "{steps: 1, task: 'school:adition'}", r"mine.yaml:6: .*unknown family `adition`"),
        ("{steps: 1}", "{step: 1}", r"mine.yaml:6: unknown key `step` in toy; did you mean `steps`"),
        ("reward: 0.5", "reward: high", r"mine.yaml:12: `reward` is 'high'"),
        ("name: second", "name: first", r"mine.yaml:7: two stages have the name `first`"),
        ("name: second", "name: a/b", r"mine.yaml:7: `stages.1.name` is 'a/b'"),
        ("problems: 3", "problem: 3", r"mine.yaml:2: unknown key `problem` in pipeline.eval; did you mean `problems`"),
        ("school:addition", "school:adition", r"unknown family `adition`; did you mean `addition`"),
        ("stages:", "stage:", r"unknown key `stage` in pipeline; did you mean `stages`"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    old: str, new: str, message: str, pipeline_file: Path, tmp_path: Path
) -> None:
    assert old in YAML
    pipeline_file.write_text(YAML.replace(old, new))
    with pytest.raises(SchoolError, match=message):
        run_pipeline(pipeline_file, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pipeline_without_stages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("stages: []\n")
    with pytest.raises(SchoolError, match="stages"):
        run_pipeline(tmp_path / "empty.yaml", None, tmp_path / "run")


def test_a_packaged_pipeline_is_found_by_its_name() -> None:
    assert find_pipeline("quickstart").name == "quickstart.yaml"
    with pytest.raises(SchoolError, match="did you mean `quickstart`"):
        find_pipeline("quikstart")


@pytest.mark.parametrize("name", sorted(path.stem for path in pipeline._PACKAGED.glob("*.yaml")))
def test_packaged_pipelines_have_no_mistakes(name: str, tmp_path: Path) -> None:
    source = pipeline.read_yaml(find_pipeline(name))
    pipeline._check(pipeline.build(pipeline.Pipeline, source), source, tmp_path)
