"""What holds for every test: nothing is fetched, one thread a process, the same examples on every run."""

import os

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs one process a core already
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


# --- the fault matrix: `pytest -m fault` proves it and prints it (tests/faults.py has the rows)

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from faults import FAULTS, markdown


def rows(item: pytest.Item) -> list[str]:
    return [str(name) for mark in item.iter_markers("fault") for name in mark.args]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in rows(item):
            if name not in FAULTS:
                raise pytest.UsageError(f"{item.nodeid}: `{name}` is no row of tests/faults.py")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = (yield).get_result()
    report.user_properties += [("fault", name) for name in rows(item)] if report.when == "call" else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("-m") != "fault":
        return
    tests, passed = Counter(), Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name in {value for key, value in report.user_properties if key == "fault"}:
                tests[name] += 1
                passed[name] += outcome == "passed"
    terminalreporter.write_line(markdown({name: (passed[name], tests[name]) for name in FAULTS}))
    proved = sum(passed[name] == tests[name] > 0 for name in FAULTS)
    terminalreporter.write_line(f"{proved} of {len(FAULTS)} rows proved by {sum(passed.values())} tests")


# --- a tiny model that knows the form of a task

MODEL = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "max_seq_len": 256,
}


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model that was shown a task's worked examples for sixty updates; one for each task."""
    from schoolhouse.recipes import pretrain, sft
    from schoolhouse.runs.run import Run

    made: dict[str, Path] = {}

    def teach(task: str) -> Path:
        if task not in made:
            folder, shape = tmp_path_factory.mktemp("taught"), pretrain.Model(**MODEL)
            book = pretrain.Config.of(
                task=task.partition("&")[0], model=shape, vocab_size=300, steps=3, batch_size=4, seq_len=32
            )
            with Run.open(folder / "book", book, "pretrain") as run:
                pretrain.pretrain(book, run)
            lessons = sft.Config.of(
                model=str(run.model), task=task, steps=60, batch_size=16, **{"optimizer.learning_rate": 1e-2}
            )
            with Run.open(folder / "lessons", lessons, "sft") as run:
                sft.sft(lessons, run)
            made[task] = run.model
        return made[task]

    return teach
