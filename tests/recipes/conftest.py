"""What tests of recipes begin with: a tiny model that knows the form of a task, and a way to stop a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import pretrain, sft
from schoolhouse.run import Run

MODEL = {"width": 32, "layers": 1, "heads": 1, "key_heads": 1, "head_dim": 32, "inner": 64, "longest": 256}


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model that was shown a task's worked examples for sixty updates; one for each task."""
    made: dict[str, Path] = {}

    def teach(task: str) -> Path:
        if task not in made:
            folder, shape = tmp_path_factory.mktemp("taught"), pretrain.Model(**MODEL)
            book = pretrain.Config(
                task=task.partition("&")[0], model=shape, vocabulary=300, steps=3, batch=4, context=32
            )
            with Run.open(folder / "book", book, "pretrain") as run:
                pretrain.pretrain(book, run)
            lessons = sft.Config(model=str(run.model), task=task, steps=60, batch=16, learning_rate=1e-2)
            with Run.open(folder / "lessons", lessons, "sft") as run:
                sft.sft(lessons, run)
            made[task] = run.model
        return made[task]

    return teach


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Does something, and stops it at the second update of a policy."""

    def stop(work: Callable[[], Any]) -> None:
        update, done = Policy.update, []

        def tired(*args: Any) -> Any:
            if done:
                raise KeyboardInterrupt
            done.append(1)
            return update(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Policy, "update", tired)
            with pytest.raises(KeyboardInterrupt):
                work()

    return stop
