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
