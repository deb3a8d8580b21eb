"""Trials of runs: what is left when the process that measures is ended."""

import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from schoolhouse.recipes.sft import Config
from schoolhouse.runs import trial


class NotHandled(Exception):
    pass


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal that raises NotHandled outside of a trial."""

    def handle(*_: Any) -> None:
        raise NotHandled

    before = signal.signal(request.param, handle)
    yield request.param
    signal.signal(request.param, before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes of trials. A trial reports at once, before its process has done anything."""
    processes: list[Any] = []
    real = subprocess.Popen

    def popen(*args: Any, **keys: Any) -> Any:
        processes.append(real(*args, **keys))
        return processes[-1]

    monkeypatch.setattr(trial.subprocess, "Popen", popen)
    monkeypatch.setattr(trial, "_LINE_SECONDS", 0.0)
    return processes


def test_a_signal_ends_the_process_of_the_trial(number: int, started: list[Any]) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        trial.run_trial("sft", Config.of(model="m"), 2, 5.0, lambda _: signal.raise_signal(number), "`sft`")
    assert ended.value.code == 128 + number
    assert started[0].returncode == -signal.SIGKILL
    assert signal.getsignal(number) == handler


def test_a_signal_that_is_ignored_stays_ignored(number: int, started: list[Any]) -> None:
    signal.signal(number, signal.SIG_IGN)

    def report(_: str) -> None:
        signal.raise_signal(number)
        raise NotHandled  # the trial continued

    with pytest.raises(NotHandled):
        trial.run_trial("sft", Config.of(model="m"), 2, 5.0, report, "`sft`")
