"""Logged metrics, read back from the files of the trackers."""

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sample_runs import write_run
from schoolhouse.cli.main import main
from schoolhouse.cli.track import track
from schoolhouse.types import SchoolError

LOCK_RUN = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""
"""A process that locks a run until its input ends."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "one")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def add_steps(run: Path, *steps: int) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "reward": 1.0, "eval": {"pass_at_1": 0.5}}) + "\n" for step in steps)


def test_tensorboard_has_every_step_once(run: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    track([str(run), "--to", "tensorboard"])
    add_steps(run, 4, 5)
    track([str(run), "--to", "tensorboard"])
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [
        (0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, 1.0),
    ]  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("eval.pass_at_1")] == [(4, 0.5), (5, 0.5)]
    assert "step" not in events.Tags()["scalars"]


def test_trackio_has_every_step_once(run: Path, tmp_path: Path):
    pytest.importorskip("trackio")
    for steps in ((), (4, 5)):
        add_steps(run, *steps)
        done = subprocess.run(
            [sys.executable, "-m", "schoolhouse", "track", str(run), "--project", "p"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Reserved" not in done.stderr
    with closing(sqlite3.connect(tmp_path / "trackio" / "p.db")) as file:
        rows = file.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(metrics)["reward"]) for _, step, metrics in rows] == [
        (step, min(step / 4, 1.0)) for step in range(6)
    ]
    (name,) = {name for name, *_ in rows}
    assert name.startswith("one-")


def test_a_run_is_followed_until_it_ends(run: Path):
    pytest.importorskip("tensorboard")
    with subprocess.Popen([sys.executable, "-c", LOCK_RUN, str(run / "lock")], stdin=-1, stdout=-1, text=True) as held:
        assert held.stdout
        held.stdout.readline()
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "state": "running"}))
        command = [sys.executable, "-m", "schoolhouse", "track", str(run), "--to", "tensorboard", "--follow"]
        with subprocess.Popen(command, stdout=-1, text=True) as follower:
            assert follower.stdout
            until = time.monotonic() + 60
            while not (run / "tracked.tensorboard.json").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            assert follower.poll() is None
            add_steps(run, 4)
            held.communicate("")
            assert follower.stdout.read().endswith("up to step 4\n")


def test_a_missing_run_tracker_or_metric_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SchoolError, match=r"not a run folder; it contains the runs .*one"):
        track([str(run.parent)])
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["track", str(run), "--to", "wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert not list(run.glob("tracked.*"))
    (run / "metrics.jsonl").write_text("")
    assert main(["track", str(run), "--to", "tensorboard"]) == 2
    assert "has no metrics yet" in capsys.readouterr().err
    assert main(["track", str(run), "--to", "tensorboard", "--project", "p"]) == 2
    assert "do not work with tensorboard" in capsys.readouterr().err
