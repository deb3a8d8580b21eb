"""The run folder: complete or absent, resumed to the same bytes, locked, and clear about what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schoolhouse.config import BaseConfig
from schoolhouse.runs.run import Run, Stopped, read_metrics
from schoolhouse.types import Completion, Group, Key, Message, Problem, Rollout, SchoolError, Verdict

STEPS = 7


class Config(BaseConfig):
    seed: int = 0
    steps: int = STEPS
    rate: float = 0.5
    clip: tuple[float, float] = (0.2, 0.28)


class Learner:
    """The least that can be saved: a weight in two files, and a moment besides."""

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
        """Happens between the two files."""

    def state_dict(self) -> dict[str, Any]:
        return {"moment": self.moment}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moment = state["moment"]


PROBLEM = Problem("p1", (Message("user", "2+2?"),), "4", "sums")


def group(step: int, *scores: float | None) -> Group:
    rollouts = [
        Rollout(PROBLEM, Key(0, "t", step, 0, g), (5, 6), (False, True), (float("nan"), -0.5), (1,), "stop")
        for g in range(len(scores))
    ]
    return Group(PROBLEM, tuple(rollouts), tuple(Verdict(s, "" if s is not None else "broken") for s in scores))


def teach(
    folder: Path,
    learner: type[Learner] = Learner,
    at: dict[int, Any] | None = None,
    each: Callable[[Run], None] = lambda run: None,
    limits: dict[str, float] | None = None,
    **config: Any,
) -> Run:
    """The toy recipe. `at` maps a step to what happens in the middle of it, `each` happens in all of them."""
    c = Config(**config)
    with Run.open(folder, c, "toy") as run:
        run.set_budget(**(limits or {}))
        learning = run.restore(learner(run.latest_checkpoint()))
        for step in run.steps(range(run.step, c.steps), save=learning, every=2):
            run.record(step, [group(step, 1.0, 0.0)])
            each(run)
            if at and step in at:
                at[step]()
            run.record(step, weight=learning.update(step, c.rate))
    return run


SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_run import Learner, Run, SchoolError, teach
def die(): os.kill(os.getpid(), signal.SIGKILL)
"""


def in_another_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT + code, str(Path(__file__).parent), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    """What must not depend on whether a run was stopped: everything but the clock."""
    kept = [folder / "metrics.jsonl", *folder.glob("rollouts/*"), *folder.glob("checkpoints/*/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The contents of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    teach(folder)
    return contents(folder)


# ---- a run that nothing happens to


def test_a_run_leaves_everything_needed_to_read_and_repeat_it(tmp_path: Path) -> None:
    run = teach(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert run.finished
    assert {"recipe": "toy", "seed": 0, "state": "finished", "step": STEPS}.items() <= manifest.items()
    assert {"versions", "code", "python", "platform", "processor", "started", "seconds"} <= manifest.keys()
    assert [row["step"] for row in read_metrics(run.folder)] == list(range(STEPS))
    assert len(list((run.folder / "rollouts").iterdir())) == STEPS


def test_the_newest_two_checkpoints_are_kept_and_the_last_is_the_model(tmp_path: Path) -> None:
    run = teach(tmp_path / "run")
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["000006", "000007"]
    assert run.model == run.folder / "checkpoints" / "000007"
    assert run.model_path("elsewhere") == run.model


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    teach(tmp_path / "run")
    before = contents(tmp_path / "run")
    again = teach(tmp_path / "run", at={step: lambda: pytest.fail("a step was done again") for step in range(STEPS)})
    assert again.finished
    assert contents(tmp_path / "run") == before


def test_a_run_that_goes_on_under_other_circumstances_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def go_on() -> str:
        with pytest.raises(KeyError):
            teach(tmp_path, at={6: lambda: {}["crash"]})
        return capsys.readouterr().err

    assert "since then changed" not in go_on() + go_on()
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "versions": {**manifest["versions"], "torch": "1.0"}}))
    told = go_on()
    assert "goes on from step 6; since then changed:\n  versions.torch: 1.0 there, " in told
    assert "so it may not end in the same bits" in told
    assert "since then changed" not in go_on()
    assert [later["step"] for later in json.loads(path.read_text())["resumed_with"]] == [6]


def test_what_a_step_records_stands_in_one_line(tmp_path: Path) -> None:
    with Run.open(tmp_path, Config(steps=1), "toy") as run:
        for step in run.steps([0], save=Learner()):
            run.record(step, loss=np.float32(0.5))
            run.record(step, eval={"pass_at_1": float("nan")})
        run.record(1, eval={"pass_at_1": 1.0})
    assert read_metrics(tmp_path) == [
        {"step": 0, "loss": 0.5, "exam": {"pass_at_1": None}},
        {"step": 1, "exam": {"pass_at_1": 1.0}},
    ]


def test_a_recorded_group_is_accounted_for_and_written_down(tmp_path: Path) -> None:
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


def test_logprobs_are_written_down_exactly(tmp_path: Path) -> None:
    said = [float(x) for x in -np.random.default_rng(0).exponential(size=50).astype(np.float32)]
    rollout = Rollout(PROBLEM, Key(0, "t"), tuple(range(50)), (True,) * 50, tuple(said))
    with Run.open(tmp_path, Config(), "toy") as run:
        run.record(0, [Group(PROBLEM, (rollout,), (Verdict(1.0),))])
    written = json.loads((tmp_path / "rollouts" / "000000.jsonl").read_text())["logprob"]
    assert [np.float32(p) for p in written] == [np.float32(p) for p in said]


def test_steps_work_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=teach, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert len(read_metrics(tmp_path / "run")) == STEPS


# ---- a run that something happens to


@pytest.mark.parametrize(
    "code",
    [
        "teach(Path(sys.argv[2]), at={5: die})",
        "teach(Path(sys.argv[2]), at={0: die})",
        "Learner.between = lambda self: self.moment > 10 and die()\nteach(Path(sys.argv[2]))",
        "Learner.state_dict = lambda self: {'moment': die() if self.moment > 10 else self.moment}\n"
        "teach(Path(sys.argv[2]))",
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
    teach(folder)
    assert contents(folder) == whole


@pytest.mark.fault("torn line")
def test_a_torn_last_line_of_the_metrics_is_done_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    def crash() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        teach(tmp_path, at={5: crash})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "wei')
    with (tmp_path / "times.jsonl").open("a") as file:
        file.write('{"step": 5, "sec')
    assert len(read_metrics(tmp_path)) == 5
    teach(tmp_path)
    assert contents(tmp_path) == whole


def test_time_adds_up_over_sessions(tmp_path: Path) -> None:
    with Run.open(tmp_path, Config(), "toy") as run:
        run._earlier = 1000.0
        run.record(0, loss=1.0)
    with Run.open(tmp_path, Config(), "toy") as run:
        assert 1000 < run.seconds < 1100
        run.finish()
    with Run.open(tmp_path, Config(), "toy") as run:
        assert run.seconds == json.loads((tmp_path / "manifest.json").read_text())["seconds"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number: int, tmp_path: Path, whole: dict[str, bytes]) -> None:
    with pytest.raises(Stopped, match="stopped after 4 steps; saved in .*000004"):
        teach(tmp_path, at={3: lambda: os.kill(os.getpid(), number)})
    assert json.loads((tmp_path / "manifest.json").read_text())["state"] == "stopped"
    assert len(read_metrics(tmp_path)) == 4
    teach(tmp_path)
    assert contents(tmp_path) == whole


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still running")

    with pytest.raises(KeyboardInterrupt) as stop:
        teach(tmp_path, at={3: twice})
    assert not isinstance(stop.value, Stopped)
    assert len(read_metrics(tmp_path)) == 3


def test_signals_are_given_back_after_the_steps(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    teach(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


# ---- what is refused


@pytest.mark.fault("config changed")
def test_another_config_is_refused_key_by_key(tmp_path: Path) -> None:
    teach(tmp_path)
    with pytest.raises(SchoolError) as refusal:
        teach(tmp_path, rate=0.25, clip=(0.2, 0.3))
    told = str(refusal.value)
    assert "rate: 0.5 there, 0.25 now" in told
    assert "clip.1: 0.28 there, 0.3 now" in told
    assert "seed" not in told
    assert "--dir" in told


def test_a_run_that_never_took_a_step_may_change_its_mind(tmp_path: Path) -> None:
    """What it was to start from was misspelt, say."""
    with pytest.raises(ZeroDivisionError), Run.open(tmp_path, Config(rate=0.25), "toy"):
        _ = 1 / 0
    assert teach(tmp_path).finished


def test_a_base_that_changed_is_noticed(tmp_path: Path) -> None:
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


def test_a_key_that_came_since_the_run_began_has_its_default_there(tmp_path: Path) -> None:
    teach(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("rate: 0.5\n", ""))
    assert teach(tmp_path).finished
    with pytest.raises(SchoolError, match="rate: 0.5 there, 0.25 now"):
        teach(tmp_path, rate=0.25)


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    teach(tmp_path)
    with pytest.raises(SchoolError, match="recipe: toy there, other now"):
        Run.open(tmp_path, Config(), "other")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SchoolError, match="not a run folder"):
        Run.open(tmp_path, Config(), "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SchoolError, match="is a file"):
        Run.open(tmp_path / "file", Config(), "toy")


def test_a_run_killed_while_it_was_created_is_created_anew(tmp_path: Path) -> None:
    teach(tmp_path / "run", steps=1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "rollouts")
    for name in ("config.yaml", "metrics.jsonl", "times.jsonl"):
        (tmp_path / "run" / name).unlink()
    assert teach(tmp_path / "run", rate=0.25).finished


@pytest.mark.fault("two runs, one folder")
def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    with Run.open(tmp_path, Config(), "toy"):
        done = in_another_process(
            "try: teach(Path(sys.argv[2]))\nexcept SchoolError as e: print(e); sys.exit(3)", tmp_path
        )
    assert done.returncode == 3, done.stderr
    assert f"in use by process {os.getpid()}" in done.stdout


@pytest.mark.parametrize(
    "harm, told",
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "is damaged"),
    ],
    ids=["missing", "truncated", "flipped"],
)
@pytest.mark.parametrize("name", ["b.json", "trainer.pt", "manifest.json"])
@pytest.mark.fault("checkpoint damaged")
def test_a_harmed_checkpoint_is_named(name: str, harm: Any, told: str, tmp_path: Path) -> None:
    path = teach(tmp_path).model / name
    harm(path)
    with pytest.raises(SchoolError) as refusal:
        teach(tmp_path)
    assert str(path) in str(refusal.value)
    assert told in str(refusal.value)


def test_without_its_newest_checkpoint_a_stopped_run_goes_on_from_the_one_before(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.raises(Stopped):
        teach(tmp_path, at={4: lambda: os.kill(os.getpid(), signal.SIGINT)})
    shutil.rmtree(tmp_path / "checkpoints" / "000005")
    teach(tmp_path)
    assert contents(tmp_path) == whole


def test_metrics_that_lost_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        teach(tmp_path, at={4: lambda: os.kill(os.getpid(), signal.SIGINT)})
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SchoolError, match=r"metrics.jsonl has lost lines: it holds 0 bytes"):
        teach(tmp_path)


# ---- a full disk

FULL = """
def big(self, folder):  # the model grows, so that the disk fills up in the middle of the run
    (folder / "b.json").write_text('{"weight": %r}' % self.weight)
    (folder / "a.txt").write_text("x" * int(200_000 * (1 + self.moment)))
Learner.save = big
resource.setrlimit(resource.RLIMIT_FSIZE, (AT_MOST, -1))
try: teach(Path(sys.argv[2]))
except SchoolError as e: print(e); sys.exit(3)
"""


@pytest.mark.fault("disk full")
def test_a_full_disk_keeps_the_last_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    done = in_another_process(FULL.replace("AT_MOST", "1_000_000"), tmp_path)
    assert done.returncode == 3, done.stderr
    assert "the disk is full" in done.stdout
    assert "000004 could not be written" in done.stdout
    assert "000002 is complete" in done.stdout
    assert "goes on from step 2" in done.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000002"]
    assert teach(tmp_path).finished


def test_a_small_disk_holds_one_checkpoint_rather_than_none(tmp_path: Path) -> None:
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


def test_metrics_that_do_not_fit_say_so(tmp_path: Path, whole: dict[str, bytes]) -> None:
    code = """
metrics = Path(sys.argv[2]) / "metrics.jsonl"
def fill(): resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.stat().st_size + 10, -1))
try: teach(Path(sys.argv[2]), at={4: fill})
except SchoolError as e: print(e); sys.exit(3)
"""
    done = in_another_process(code, tmp_path)
    assert done.returncode == 3, done.stderr
    assert "metrics.jsonl could not be written" in done.stdout
    assert "goes on from step 4" in done.stdout
    teach(tmp_path)
    assert contents(tmp_path) == whole


def test_a_run_ends_when_its_budget_of_tokens_is_spent_and_goes_on_counting_after_a_stop(tmp_path):
    def die() -> None:
        raise RuntimeError

    whole = teach(tmp_path / "whole", limits={"tokens": 5})  # two a step
    assert whole.finished
    assert [row["step"] for row in read_metrics(whole.folder)] == [0, 1, 2]
    with pytest.raises(RuntimeError):
        teach(tmp_path / "cut", at={2: die}, limits={"tokens": 5})
    assert contents(teach(tmp_path / "cut", limits={"tokens": 5}).folder) == contents(whole.folder)


def test_a_run_that_had_spent_its_budget_when_it_was_killed_does_not_take_a_step_more(tmp_path, monkeypatch):
    whole = teach(tmp_path / "whole", limits={"tokens": 5})
    note = Run._note_state

    def die(run: Run, state: str) -> None:
        if state == "finished":
            raise KeyboardInterrupt
        note(run, state)

    monkeypatch.setattr(Run, "_note_state", die)
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "cut", limits={"tokens": 5})
    monkeypatch.undo()
    again = teach(tmp_path / "cut", limits={"tokens": 5})
    assert again.finished
    assert contents(again.folder) == contents(whole.folder)


def test_exams_do_not_count_in_a_budget_of_seconds(tmp_path):
    def sit(run: Run) -> None:
        run.log_timing(holdout=1000.0)

    assert len(read_metrics(teach(tmp_path / "aside", each=sit, limits={"seconds": 100}).folder)) == STEPS
    assert len(read_metrics(teach(tmp_path / "none", limits={"seconds": 0}).folder)) == 1


def test_what_depends_on_the_clock_stands_in_times_alone(tmp_path):
    run = teach(
        tmp_path / "run", each=lambda run: run.log_timing(grading={"mean": 0.1, "slowest": 0.5}, eval=0.0), steps=1
    )
    (row,) = [json.loads(line) for line in (run.folder / "times.jsonl").read_text().splitlines()]
    assert row["verdicts"] == {"mean": 0.1, "slowest": 0.5}
    assert "exam" not in row
    assert "verdicts" not in read_metrics(run.folder)[0]
