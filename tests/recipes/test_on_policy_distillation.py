"""On-policy distillation: the student comes closer to its teacher, resumed or not. Both need the same tokenizer."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from schoolhouse.recipes import on_policy_distillation, pretrain, sft
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import SchoolError
from tiny_runs import TINY, metrics_text, train

TASK = "school:facts"


@pytest.fixture(scope="module")
def teacher(sft_model: Callable[[str], Path]) -> Path:
    return sft_model(TASK)


def config(folder: Path, **keys: Any) -> on_policy_distillation.Config:
    """The student is the base of its teacher, which answers at random."""
    defaults: dict[str, Any] = {
        "model": str(folder.parents[2] / "base"),
        "teacher": str(folder),
        "task": TASK,
        "steps": 2,
        "prompts_per_step": 8,
        "group_size": 2,
        "sampling.max_new_tokens": 16,
        "optimizer.learning_rate": 1e-2,
        "precision": "float32",
        "save_every": 1,
    }
    return on_policy_distillation.Config.of(**{**defaults, **keys})


def test_the_student_comes_closer_to_the_teacher(teacher: Path, tmp_path: Path):
    """The student has seen a third of the demonstrations of its teacher."""
    keys: dict[str, Any] = {"task": TASK, "steps": 20, "batch_size": 16, "optimizer.learning_rate": 1e-2}
    student = train(tmp_path / "student", sft.Config.of(model=str(teacher.parents[2] / "base"), **keys)).model
    keys = {"model": str(student), "steps": 40, "prompts_per_step": 32, "group_size": 1}
    c = config(teacher, **keys, **{"optimizer.learning_rate": 2e-3})
    rows = read_metrics(train(tmp_path / "run", c).folder)
    first, last = (fmean(row["reverse_kl"] for row in part) for part in (rows[:3], rows[-3:]))
    assert last < 0.7 * first
    assert all("reward" in row for row in rows)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(teacher, model=str(teacher), steps=1)).folder)
    assert rows[0]["reverse_kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(0.0, abs=1e-4)


def test_an_interrupted_run_resumes_to_the_same_numbers(teacher: Path, tmp_path: Path, interrupted: Any):
    whole = train(tmp_path / "whole", config(teacher))
    interrupted(lambda: train(tmp_path / "cut", config(teacher)))
    assert metrics_text(train(tmp_path / "cut", config(teacher))) == metrics_text(whole)


def test_a_teacher_with_another_tokenizer_is_refused(teacher: Path, tmp_path: Path):
    c = pretrain.Config.of(task=TASK, model=TINY, vocab_size=290, steps=1, batch_size=2, seq_len=16)
    other = train(tmp_path / "other", c).folder
    with pytest.raises(SchoolError, match="different tokenizers, so the teacher cannot score"):
        train(tmp_path / "run", config(teacher, teacher=str(other)))
