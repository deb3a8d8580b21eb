"""The run folder: complete or absent, resumed to the same bytes, locked, and clear about what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schoolhouse.config import BaseConfig
from schoolhouse.runs.atomic_io import read_jsonl
from schoolhouse.runs.run import Run, Stopped, read_metrics
from schoolhouse.types import Completion, Group, Key, Message, Problem, Rollout, SchoolError, Verdict

STEPS = 7


class Config(BaseConfig):
    seed: int = 0
    steps: int = STEPS
    rate: float = 0.5
    clip: tuple[float, float] = (0.2, 0.28)


class Learner:
    """A minimal state: a weight in two files, and an optimizer moment."""

    def __init__(self, folder: Path | None = None) -> None:
        self.weight = json.loads((folder / "b.json").read_text())["weight"] if folder else 1.0
        self.moment = 0.0

    def update(self, step: int, rate: float) -> float:
        self.moment = 0.9 * self.moment + step
        self.weight += rate * self.moment
        return self.weight

    def save(self, folder: Path) -> None:
        (folder / "a.txt").write_text("always the same")
        self.between()
        (folder / "b.json").write_text(json.dumps({"weight": self.weight}))

    def between(self) -> None:
        """Called between the two files."""

    def state_dict(self) -> dict[str, Any]:
        return {"moment": self.moment}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moment = state["moment"]


PROBLEM = Problem("p1", (Message("user", "2+2?"),), "4", "sums")


def group(step: int, *rewards: float | None) -> Group:
    rollouts = [
        Rollout(PROBLEM, Key(0, "t", step, 0, g), (5, 6), (False, True), (float("nan"), -0.5), (1,), "stop")
        for g in range(len(rewards))
    ]
    return Group(
        PROBLEM, tuple(rollouts), tuple(Verdict(reward, "" if reward is not None else "broken") for reward in rewards)
    )


def train(
    folder: Path,
    learner: type[Learner] = Learner,
    at: dict[int, Any] | None = None,
    each: Callable[[Run], None] = lambda run: None,
    budget: dict[str, float] | None = None,
    **config: Any,
) -> Run:
    """A toy recipe. `at` maps a step to a function that is called in the middle of it; `each` is for every step."""
    c = Config(**config)
    with Run.open(folder, c, "toy") as run:
        run.set_budget(**(budget or {}))
        state = run.restore(learner(run.latest_checkpoint()))
        for step in run.steps(range(run.step, c.steps), save=state, every=2):
            run.record(step, [group(step, 1.0, 0.0)])
            each(run)
            if at and step in at:
                at[step]()
            run.record(step, weight=state.update(step, c.rate))
    return run


SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_run import Learner, Run, SchoolError, train
def die(): os.kill(os.getpid(), signal.SIGKILL)
"""


def in_another_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT + code, str(Path(__file__).parent), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    """The files that do not depend on whether a run was stopped: all but the times."""
    files = [folder / "metrics.jsonl", *folder.glob("rollouts/*"), *folder.glob("checkpoints/*/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The contents of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return contents(folder)


# ---- an uninterrupted run


def test_a_run_folder_has_everything_to_read_and_repeat_it(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert run.finished
    assert {"format": 1, "recipe": "toy", "seed": 0, "state": "finished", "step": STEPS}.items() <= manifest.items()
    assert {"versions", "code", "python", "platform", "processor", "started", "seconds"} <= manifest.keys()
    assert [row["step"] for row in read_metrics(run.folder)] == list(range(STEPS))
    assert len(list((run.folder / "rollouts").iterdir())) == STEPS


def test_the_newest_two_checkpoints_are_kept_and_the_last_is_the_model(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["000006", "000007"]
    assert run.model == run.folder / "checkpoints" / "000007"
    assert run.model_path("elsewhere") == run.model


def test_a_finished_run_does_no_step_again(tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = contents(tmp_path / "run")
    again = train(tmp_path / "run", at={step: lambda: pytest.fail("a step ran again") for step in range(STEPS)})
    assert again.finished
    assert contents(tmp_path / "run") == before


def test_resuming_in_a_changed_environment_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resume() -> str:
        with pytest.raises(KeyError):
            train(tmp_path, at={6: lambda: {}["crash"]})
        return capsys.readouterr().err

    assert "changed environment" not in resume() + resume()
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "versions": {**manifest["versions"], "torch": "1.0"}}))
    message = resume()
    assert "resumes from step 6 in a changed environment:\n  versions.torch: 1.0 -> " in message
    assert "may differ in their bits" in message
    assert "changed environment" not in resume()
    assert [later["step"] for later in json.loads(path.read_text())["resumed_with"]] == [6]


def test_all_records_of_a_step_are_one_line_of_metrics(tmp_path: Path) -> None:
    with Run.open(tmp_path, Config(steps=1), "toy") as run:
        for step in run.steps([0], save=Learner()):
            run.record(step, loss=np.float32(0.5))
            run.record(step, eval={"pass_at_1": float("nan")})
        run.record(1, eval={"pass_at_1": 1.0})
    assert read_metrics(tmp_path) == [
        {"step": 0, "loss": 0.5, "eval": {"pass_at_1": None}},
        {"step": 1, "eval": {"pass_at_1": 1.0}},
    ]


def test_a_recorded_group_is_counted_and_written_to_rollouts(tmp_path: Path) -> None:
    with Run.open(tmp_path, Config(steps=1), "toy") as run:
        for step, groups in run.steps([(0, [group(0, 1.0, None)])], save=Learner()):
            run.record(step, groups, parse=lambda rollout: Completion("hm", "4"))
    (line,) = read_metrics(tmp_path)
    assert {"groups": 1, "rollouts": 2, "ungraded": 1, "reward": 1.0}.items() <= line.items()
    first, second = map(json.loads, (tmp_path / "rollouts" / "000000.jsonl").read_text().splitlines())
    assert (first["problem"], first["question"], first["family"]) == ("p1", "2+2?", "sums")
    assert (first["tokens"], first["sampled_spans"], first["logprob"]) == ([5, 6], [[1, 2]], [-0.5])
    assert (first["thought"], first["answer"]) == ("hm", "4")
    assert (second["sample"], second["reward"], second["reason"]) == (1, None, "broken")


def test_logprobs_are_written_exactly(tmp_path: Path) -> None:
    logprobs = [float(x) for x in -np.random.default_rng(0).exponential(size=50).astype(np.float32)]
    rollout = Rollout(PROBLEM, Key(0, "t"), tuple(range(50)), (True,) * 50, tuple(logprobs))
    with Run.open(tmp_path, Config(), "toy") as run:
        run.record(0, [Group(PROBLEM, (rollout,), (Verdict(1.0),))])
    written = json.loads((tmp_path / "rollouts" / "000000.jsonl").read_text())["logprob"]
    assert [np.float32(p) for p in written] == [np.float32(p) for p in logprobs]


def test_steps_work_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert len(read_metrics(tmp_path / "run")) == STEPS


# ---- an interrupted run


@pytest.mark.parametrize(
    "code",
    [
        "train(Path(sys.argv[2]), at={5: die})",
        "train(Path(sys.argv[2]), at={0: die})",
        "Learner.between = lambda self: self.moment > 10 and die()\ntrain(Path(sys.argv[2]))",
        "Learner.state_dict = lambda self: {'moment': die() if self.moment > 10 else self.moment}\n"
        "train(Path(sys.argv[2]))",
    ],
    ids=["in a step", "in the first step", "between two files of a checkpoint", "before the trainer state"],
)
@pytest.mark.fault("killed", "checkpoint half written")
def test_a_killed_run_ends_in_the_same_bytes(code: str, tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = tmp_path / "run"
    done = in_another_process(code, folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for checkpoint in folder.glob("checkpoints/[0-9]*"):
        complete = {path.name for path in checkpoint.iterdir()} == {"a.txt", "b.json", "trainer.pt", "manifest.json"}
        assert complete or checkpoint.suffix == ".partial"
    train(folder)
    assert contents(folder) == whole


@pytest.mark.fault("torn line")
def test_the_step_of_a_torn_last_line_is_done_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    def crash() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path, at={5: crash})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "wei')
    with (tmp_path / "times.jsonl").open("a") as file:
        file.write('{"step": 5, "sec')
    assert len(read_metrics(tmp_path)) == 5
    train(tmp_path)
    assert contents(tmp_path) == whole


def test_time_adds_up_over_sessions(tmp_path: Path) -> None:
    with Run.open(tmp_path, Config(), "toy") as run:
        run._earlier_seconds = 1000.0
        run.record(0, loss=1.0)
    with Run.open(tmp_path, Config(), "toy") as run:
        assert 1000 < run.seconds < 1100
        run.finish()
    with Run.open(tmp_path, Config(), "toy") as run:
        assert run.seconds == json.loads((tmp_path / "manifest.json").read_text())["seconds"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number: int, tmp_path: Path, whole: dict[str, bytes]) -> None:
    with pytest.raises(Stopped, match="stopped after 4 steps; the state was saved in .*000004"):
        train(tmp_path, at={3: lambda: os.kill(os.getpid(), number)})
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "stopped"
    assert len(read_metrics(tmp_path)) == 4
    train(tmp_path)
    assert contents(tmp_path) == whole


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still running")

    with pytest.raises(KeyboardInterrupt) as stop:
        train(tmp_path, at={3: twice})
    assert not isinstance(stop.value, Stopped)
    assert len(read_metrics(tmp_path)) == 3


def test_signal_handlers_are_restored_after_the_steps(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


# ---- refusals


@pytest.mark.fault("config changed")
def test_another_config_is_refused_with_every_changed_key(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(SchoolError) as refusal:
        train(tmp_path, rate=0.25, clip=(0.2, 0.3))
    message = str(refusal.value)
    assert "rate: 0.5 -> 0.25" in message
    assert "clip.1: 0.28 -> 0.3" in message
    assert "seed" not in message
    assert "--dir" in message


def test_a_run_without_a_finished_step_accepts_another_config(tmp_path: Path) -> None:
    """For example after a misspelt path of the starting model."""
    with pytest.raises(ZeroDivisionError), Run.open(tmp_path, Config(rate=0.25), "toy"):
        _ = 1 / 0
    assert train(tmp_path).finished


def test_a_changed_base_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"one")
    with Run.open(tmp_path / "run", Config(), "toy") as run:
        assert run.model_path(tmp_path / "base") == tmp_path / "base"
        run.record(0, loss=1.0)
    with Run.open(tmp_path / "run", Config(), "toy") as run:
        run.model_path(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"two")
    with Run.open(tmp_path / "run", Config(), "toy") as run, pytest.raises(SchoolError, match="base has changed since"):
        run.model_path(tmp_path / "base")


def test_a_key_that_was_added_since_the_run_began_has_its_default(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("rate: 0.5\n", ""))
    assert train(tmp_path).finished
    with pytest.raises(SchoolError, match=r"rate: 0.5 -> 0.25"):
        train(tmp_path, rate=0.25)


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(SchoolError, match=r"recipe: toy -> other"):
        Run.open(tmp_path, Config(), "other")


def test_a_folder_with_other_files_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SchoolError, match="not a run folder"):
        Run.open(tmp_path, Config(), "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SchoolError, match="is a file"):
        Run.open(tmp_path / "file", Config(), "toy")


def test_a_run_killed_during_creation_is_created_again(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "rollouts")
    for name in ("config.yaml", "metrics.jsonl", "times.jsonl"):
        (tmp_path / "run" / name).unlink()
    assert train(tmp_path / "run", rate=0.25).finished


@pytest.mark.fault("two runs, one folder")
def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    with Run.open(tmp_path, Config(), "toy"):
        done = in_another_process(
            "try: train(Path(sys.argv[2]))\nexcept SchoolError as e: print(e); sys.exit(3)", tmp_path
        )
    assert done.returncode == 3, done.stderr
    assert f"in use by process {os.getpid()}" in done.stdout


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "is damaged"),
    ],
    ids=["missing", "truncated", "flipped"],
)
@pytest.mark.parametrize("name", ["b.json", "trainer.pt", "manifest.json"])
@pytest.mark.fault("checkpoint damaged")
def test_a_damaged_checkpoint_file_is_named(name: str, damage: Any, message: str, tmp_path: Path) -> None:
    path = train(tmp_path).model / name
    damage(path)
    with pytest.raises(SchoolError) as refusal:
        train(tmp_path)
    assert str(path) in str(refusal.value)
    assert message in str(refusal.value)


def test_without_its_newest_checkpoint_a_stopped_run_resumes_from_the_one_before(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, at={4: lambda: os.kill(os.getpid(), signal.SIGINT)})
    shutil.rmtree(tmp_path / "checkpoints" / "000005")
    train(tmp_path)
    assert contents(tmp_path) == whole


def test_metrics_that_lost_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, at={4: lambda: os.kill(os.getpid(), signal.SIGINT)})
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SchoolError, match=r"metrics.jsonl has lost lines: it has 0 bytes"):
        train(tmp_path)


# ---- a full disk

FULL = """
def big(self, folder):  # the model grows, so that the disk fills up in the middle of the run
    (folder / "b.json").write_text('{"weight": %r}' % self.weight)
    (folder / "a.txt").write_text("x" * int(200_000 * (1 + self.moment)))
Learner.save = big
resource.setrlimit(resource.RLIMIT_FSIZE, (AT_MOST, -1))
try: train(Path(sys.argv[2]))
except SchoolError as e: print(e); sys.exit(3)
"""


@pytest.mark.fault("disk full")
def test_a_full_disk_keeps_the_last_checkpoint_and_explains_how_to_resume(tmp_path: Path) -> None:
    done = in_another_process(FULL.replace("AT_MOST", "1_000_000"), tmp_path)
    assert done.returncode == 3, done.stderr
    assert "the disk is full" in done.stdout
    assert "000004 could not be written" in done.stdout
    assert "000002 is complete" in done.stdout
    assert "resumes from step 2" in done.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000002"]
    assert train(tmp_path).finished


def test_a_small_disk_keeps_one_checkpoint(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        done = in_another_process(FULL.replace("AT_MOST", "-1"), tmp_path / "run")
        assert done.returncode == 3, done.stderr
        assert "No space left on device" in done.stdout
        kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
        assert len(kept) == 1
        assert f"{kept[0]} is complete" in done.stdout
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_metrics_that_do_not_fit_on_the_disk_are_named(tmp_path: Path, whole: dict[str, bytes]) -> None:
    code = """
metrics = Path(sys.argv[2]) / "metrics.jsonl"
def fill(): resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.stat().st_size + 10, -1))
try: train(Path(sys.argv[2]), at={4: fill})
except SchoolError as e: print(e); sys.exit(3)
"""
    done = in_another_process(code, tmp_path)
    assert done.returncode == 3, done.stderr
    assert "metrics.jsonl could not be written" in done.stdout
    assert "resumes from step 4" in done.stdout
    train(tmp_path)
    assert contents(tmp_path) == whole


def test_a_token_budget_counts_across_a_stop(tmp_path):
    def die() -> None:
        raise RuntimeError

    whole = train(tmp_path / "whole", budget={"tokens": 5})  # two a step
    assert whole.finished
    assert [row["step"] for row in read_metrics(whole.folder)] == [0, 1, 2]
    with pytest.raises(RuntimeError):
        train(tmp_path / "cut", at={2: die}, budget={"tokens": 5})
    assert contents(train(tmp_path / "cut", budget={"tokens": 5}).folder) == contents(whole.folder)


def test_a_run_killed_after_its_budget_was_reached_does_no_further_step(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", budget={"tokens": 5})
    set_state = Run._set_state

    def die(run: Run, state: str) -> None:
        if state == "finished":
            raise KeyboardInterrupt
        set_state(run, state)

    monkeypatch.setattr(Run, "_set_state", die)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", budget={"tokens": 5})
    monkeypatch.undo()
    again = train(tmp_path / "cut", budget={"tokens": 5})
    assert again.finished
    assert contents(again.folder) == contents(whole.folder)


def test_evaluations_do_not_count_in_a_budget_of_seconds(tmp_path):
    def evaluate(run: Run) -> None:
        run.log_timing(eval=1000.0)

    assert len(read_metrics(train(tmp_path / "aside", each=evaluate, budget={"seconds": 100}).folder)) == STEPS
    assert len(read_metrics(train(tmp_path / "none", budget={"seconds": 0}).folder)) == 1


def test_numbers_that_depend_on_the_clock_are_in_times_only(tmp_path):
    run = train(
        tmp_path / "run", each=lambda run: run.log_timing(grading={"mean": 0.1, "slowest": 0.5}, eval=0.0), steps=1
    )
    (row,) = [json.loads(line) for line in (run.folder / "times.jsonl").read_text().splitlines()]
    assert row["grading"] == {"mean": 0.1, "slowest": 0.5}
    assert "eval" not in row
    assert "grading" not in read_metrics(run.folder)[0]


def test_the_time_of_a_lazy_source_counts_as_sampling(tmp_path):
    def source():
        for step in range(2):
            time.sleep(0.02)
            yield step

    with Run.open(tmp_path, Config(steps=2), "toy") as run:
        for step in run.steps(source(), save=Learner()):
            run.record(step, loss=1.0)
    assert all(row["sampling"] >= 0.02 for row in read_jsonl(tmp_path / "times.jsonl"))
    assert all("sampling" not in row for row in read_jsonl(train(tmp_path / "range").folder / "times.jsonl"))


def test_the_seconds_of_a_timed_block_add_up_within_a_step(tmp_path):
    with Run.open(tmp_path, Config(steps=2), "toy") as run:
        for _ in run.steps(range(2), save=Learner()):
            for _ in range(2):
                with run.timed("learning"):
                    time.sleep(0.01)
    assert all(0.02 <= row["learning"] <= row["seconds"] for row in read_jsonl(tmp_path / "times.jsonl"))


# ---- the format of run folders


@pytest.mark.parametrize("number, words", [(None, "no format"), (0, "format 0"), (2, "format 2"), ("1", "format 1")])
@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_a_run_of_another_format_is_refused_and_unchanged(
    tmp_path: Path, number: object, words: str, state: str
) -> None:
    if state == "finished":
        train(tmp_path)
    else:
        with pytest.raises(Stopped):
            train(tmp_path, at={4: lambda: os.kill(os.getpid(), signal.SIGINT)})
    path = tmp_path / "manifest.json"
    manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != "format"}
    path.write_text(json.dumps(manifest if number is None else {**manifest, "format": number}))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"}
    with pytest.raises(SchoolError) as refusal:
        train(tmp_path)
    assert str(refusal.value) == (
        f"{path} has {words}, but this version of schoolhouse reads format 1: "
        "start a new run in another folder with --dir, or use the version that wrote this file"
    )
    assert {file: file.read_bytes() for file in before} == before
