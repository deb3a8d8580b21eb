"""Settings of all tests: no downloads, one thread per process, the same examples on every run."""

import os
import signal

# A shell starts background jobs with SIGINT ignored, and child processes inherit that. Tests send SIGINT to commands.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports torch or transformers.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest runs one process a core already
os.environ.setdefault("SCHOOLHOUSE_NATIVE", "1")  # what runs must not depend on the time that a kernel took once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["SCHOOLHOUSE_QUIET"] = "1"  # the speed of the machine does not change what a command prints

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


# --- the fault matrix: `pytest -m fault` proves its rows and prints it (tests/faults.py has the rows)

import sys
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import pluggy
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from faults import FAULTS, markdown


def fault_rows(item: pytest.Item) -> list[str]:
    return [str(name) for mark in item.iter_markers("fault") for name in mark.args]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in fault_rows(item):
            if name not in FAULTS:
                raise pytest.UsageError(f"{item.nodeid}: tests/faults.py has no row `{name}`")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    report = (yield).get_result()
    report.user_properties += [("fault", name) for name in fault_rows(item)] if report.when == "call" else []


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
    terminalreporter.write_line(
        f"{sum(passed.values())} tests passed, and they prove {proved} of the {len(FAULTS)} rows."
    )


# --- a tiny model that has seen the demonstrations of a task


@pytest.fixture(scope="session")
def sft_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model after sixty updates on the demonstrations of a task. Each task's model is made once."""
    from schoolhouse.recipes import pretrain, sft
    from tiny_runs import TINY, train

    models: dict[str, Path] = {}

    def model(task: str) -> Path:
        if task not in models:
            folder, text = tmp_path_factory.mktemp("sft_model"), task.partition("&")[0]
            c = pretrain.Config.of(task=text, model=TINY, vocab_size=300, steps=3, batch_size=4, seq_len=32)
            base = str(train(folder / "base", c).model)
            c = sft.Config.of(model=base, task=task, steps=60, batch_size=16, **{"optimizer.learning_rate": 1e-2})
            models[task] = train(folder / "sft", c).model
        return models[task]

    return model
