"""Rejection keeps nothing wrong, mixed or duplicate. The student learns from the kept rows, resumed or not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import pretrain, rejection_sampling, sft
from schoolhouse.runs.atomic_io import read_json, read_jsonl
from schoolhouse.runs.run import read_metrics
from schoolhouse.tasks.jsonl import demonstration_from_row
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Group, Key, SchoolError, Verdict
from tiny_runs import TINY, metrics_text, train

MODEL = {**TINY, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose answer is always 7, with half of the thoughts in two languages; a base, and a fine-tuned teacher."""
    folder = tmp_path_factory.mktemp("models")
    rows = [{"question": f"Say {i}.", "answer": f"{('seven', 'seven 七')[i % 2]} #### 7"} for i in range(60)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = pretrain.Config.of(task="school:facts", model=MODEL, vocab_size=300, steps=3, batch_size=4, seq_len=32)
    train(folder / "base", c)
    keys = {"task": task_of(folder), "steps": 100, "batch_size": 32, "optimizer.learning_rate": 1e-2}
    train(folder / "teacher", sft.Config.of(model=str(folder / "base"), **keys))
    return folder


def task_of(folder: Path) -> str:
    return f"jsonl:{folder / 'task.jsonl'}?holdout=none"


def config(folder: Path, **keys: Any) -> rejection_sampling.Config:
    defaults: dict[str, Any] = {
        "teacher": str(folder / "teacher"),
        "model": str(folder / "base"),
        "task": task_of(folder),
        "num_prompts": 60,
        "samples_per_prompt": 4,
        "sampling.max_new_tokens": 24,
        "steps": 4,
        "batch_size": 4,
    }
    return rejection_sampling.Config.of(**{**defaults, **keys})


# --- what is kept


def test_kept_answers_are_right_in_one_language_and_unique(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder, script="latin"))
    rows, counts = read_jsonl(run.folder / "kept.jsonl"), read_json(run.folder / "harvest.json")
    assert len(rows) == counts["kept"] > 0
    assert counts["dropped_mixed"] > 0
    dropped = sum(count for reason, count in counts.items() if reason.startswith("dropped"))
    assert counts["rollouts"] == 240 == counts["kept"] + dropped
    assert all(row["thought"].isascii() for row in rows)
    assert all(f"{{{row['reference']}}}" in row["response"] for row in rows)
    assert len({(row["id"], row["thought"], row["response"]) for row in rows}) == len(rows)
    first = read_metrics(run.folder)[0]
    assert first["dropped_mixed"] == counts["dropped_mixed"]
    assert (first["kept_wrong"], first["kept_mixed"]) == (0, 0)


def test_no_more_than_the_cap_is_kept_of_a_problem(folder: Path, tmp_path: Path):
    rows = read_jsonl(train(tmp_path / "run", config(folder, max_kept_per_problem=1)).folder / "kept.jsonl")
    assert rows
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_problem_that_occurs_twice_has_one_cap(folder: Path):
    rows, counts = rejection_sampling.sample_teacher(config(folder, num_prompts=150, max_kept_per_problem=1))
    assert counts["rollouts"] == 600  # of 60 problems
    assert rows
    assert len({row["id"] for row in rows}) == len(rows)


def test_an_answer_without_a_thought_is_in_no_script(folder: Path, monkeypatch: pytest.MonkeyPatch):
    parse = Conversation.parse_completion
    monkeypatch.setattr(
        Conversation, "parse_completion", lambda self, rollout: replace(parse(self, rollout), thought=" ")
    )
    _, counts = rejection_sampling.sample_teacher(config(folder, script="latin"))
    assert counts["dropped_no_thought"] > 0 == counts.get("kept", 0)
    _, counts = rejection_sampling.sample_teacher(config(folder))
    assert counts["kept"] > 0


def test_a_truncated_answer_is_dropped_although_it_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch):
    grade = rejection_sampling.grade

    def all_right(*args: Any) -> list[Group]:
        return [Group(g.problem, g.rollouts, tuple(Verdict(1.0) for _ in g.rollouts)) for g in grade(*args)]

    monkeypatch.setattr(rejection_sampling, "grade", all_right)
    rows, counts = rejection_sampling.sample_teacher(config(folder, **{"sampling.max_new_tokens": 2}))
    assert (rows, counts["dropped_wrong"]) == ([], counts["rollouts"])


def test_a_kept_row_is_the_completion_of_the_teacher(folder: Path):
    rows, _ = rejection_sampling.sample_teacher(config(folder, num_prompts=8))
    demonstration = demonstration_from_row(rows[0])
    assert isinstance(demonstration, Demonstration)
    conversation = Policy.load(folder / "teacher").conversation
    completion = conversation.parse_completion(conversation.demonstration_rollout(demonstration, Key(0, "t")))
    assert (completion.thought, completion.answer) == (rows[0]["thought"], rows[0]["response"])


def test_a_teacher_that_is_never_right_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="none of 240 completions was kept .*: use a teacher that solves some"):
        train(tmp_path / "run", config(folder, teacher=str(folder / "base"), **{"sampling.max_new_tokens": 1}))


# --- what the student learns


def test_the_kept_rows_are_a_task(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder))
    demonstrations = open_task(f"jsonl:{run.folder / 'kept.jsonl'}?holdout=none").demonstrations(0, 8)
    kept = read_jsonl(run.folder / "kept.jsonl")
    assert len(demonstrations) == 8
    assert {one.problem.reference for one in demonstrations} <= {row["reference"] for row in kept}


def test_the_student_learns_from_more_than_one_batch_of_kept_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    problems, demonstration_rollouts = set(), Conversation.demonstration_rollouts

    def recorded(self: Conversation, demonstrations: Any, keys: Any) -> Any:
        problems.update(demonstration.problem.id for demonstration in demonstrations)
        return demonstration_rollouts(self, demonstrations, keys)

    monkeypatch.setattr(Conversation, "demonstration_rollouts", recorded)
    train(tmp_path / "run", config(folder, steps=6))
    assert len(problems) > 8  # of batches of 4


def test_an_interrupted_run_resumes_to_the_same_numbers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, update = train(tmp_path / "whole", config(folder, save_every=2)), Policy.update

    def interrupt_at_update_3(self: Policy, *args: Any) -> Any:
        if self.version == 3:
            raise KeyboardInterrupt
        return update(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "update", interrupt_at_update_3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", config(folder, save_every=2))
    assert metrics_text(train(tmp_path / "cut", config(folder, save_every=2))) == metrics_text(whole)


def test_kept_rows_that_have_changed_since_the_run_began_are_refused(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder, save_every=2, steps=4))
    resumed = tmp_path / "resumed" / "run"
    shutil.copytree(run.folder, resumed)
    kept, manifest = resumed / "kept.jsonl", resumed / "manifest.json"
    kept.write_text(kept.read_text().replace("Say", "Tell"))
    text = manifest.read_text().replace(str(run.folder), str(resumed))
    manifest.write_text(text.replace('"finished"', '"stopped"'))
    with pytest.raises(SchoolError, match=r"kept\.jsonl has changed since"):
        train(resumed, config(folder, save_every=2, steps=4))


@pytest.mark.parametrize("script", ["latn", "klingon"])
def test_an_unknown_script_is_refused(folder: Path, script: str):
    with pytest.raises(SchoolError, match=f"unknown writing system .script. `{script}`"):
        config(folder, script=script)
