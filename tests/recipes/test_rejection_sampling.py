"""Rejection keeps nothing wrong, mixed or twice; the student learns from the rows, also after a stop."""

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
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.tasks.jsonl import from_row
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Group, Key, SchoolError, Verdict

MODEL = pretrain.Model(
    hidden_size=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=32, intermediate_size=32, max_seq_len=256
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose answer is always 7, half of the rationales in two languages; a base, and a model that was taught."""
    place = tmp_path_factory.mktemp("models")
    rows = [{"question": f"Say {i}.", "answer": f"{('seven', 'seven 七')[i % 2]} #### 7"} for i in range(60)]
    (place / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"jsonl:{place / 'task.jsonl'}?holdout=none"
    book = pretrain.Config.of(task="school:facts", model=MODEL, vocab_size=300, steps=3, batch_size=4, seq_len=32)
    with Run.open(place / "base", book, "pretrain") as run:
        pretrain.pretrain(book, run)
    lessons = sft.Config.of(
        model=str(place / "base"), task=task, steps=100, batch_size=32, **{"optimizer.learning_rate": 1e-2}
    )
    with Run.open(place / "teacher", lessons, "sft") as run:
        sft.sft(lessons, run)
    return place


def config(folder: Path, **changes: Any) -> rejection_sampling.Config:
    given: dict[str, Any] = {
        "num_prompts": 60,
        "samples_per_prompt": 4,
        "sampling.max_new_tokens": 24,
        "steps": 4,
        "batch_size": 4,
    }
    given["task"] = f"jsonl:{folder / 'task.jsonl'}?holdout=none"
    given |= {"teacher": str(folder / "teacher"), "model": str(folder / "base")}
    return rejection_sampling.Config.of(**{**given, **changes})


def train(place: Path, c: rejection_sampling.Config) -> Run:
    with Run.open(place, c, "rejection_sampling") as run:
        rejection_sampling.rejection_sampling(c, run)
    return run


def test_what_is_kept_is_right_in_one_language_and_there_once(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder, script="latin"))
    rows = read_jsonl(run.folder / "kept.jsonl")
    account = read_json(run.folder / "harvest.json")
    assert len(rows) == account["kept"] > 0
    assert account["dropped_mixed"] > 0
    reasons = sum(n for why, n in account.items() if why.startswith("dropped"))
    assert account["rollouts"] == 240 == account["kept"] + reasons
    assert all(row["thought"].isascii() for row in rows)
    assert all(f"{{{row['reference']}}}" in row["said"] for row in rows)
    assert len({(row["id"], row["thought"], row["said"]) for row in rows}) == len(rows)
    first = read_metrics(run.folder)[0]
    assert first["dropped_mixed"] == account["dropped_mixed"]
    assert (first["kept_wrong"], first["kept_mixed"]) == (0, 0)


def test_no_more_than_the_cap_is_kept_of_a_problem(folder: Path, tmp_path: Path):
    rows = read_jsonl(train(tmp_path / "run", config(folder, max_kept_per_problem=1)).folder / "kept.jsonl")
    assert rows
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_problem_that_is_asked_again_has_one_cap(folder: Path):
    rows, account = rejection_sampling.sample_teacher(config(folder, num_prompts=150, max_kept_per_problem=1))
    assert account["rollouts"] == 600  # of 60 problems
    assert len({row["id"] for row in rows}) == len(rows)


def test_what_was_kept_is_a_task_of_its_own(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder))
    lessons = open_task(f"jsonl:{run.folder / 'kept.jsonl'}?holdout=none").demonstrations(0, 8)
    kept = read_jsonl(run.folder / "kept.jsonl")
    assert {d.problem.reference for d in lessons} <= {row["reference"] for row in kept}


def test_a_student_that_was_stopped_learns_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train(tmp_path / "whole", config(folder, save_every=2))
    update = Policy.update

    def tired(self: Policy, *args: Any) -> Any:
        if self.version == 3:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(Policy, "update", tired)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config(folder, save_every=2))
    monkeypatch.undo()
    again = train(tmp_path / "cut", config(folder, save_every=2))
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_an_answer_without_a_thought_keeps_to_no_language(folder: Path, monkeypatch: pytest.MonkeyPatch):
    read = Conversation.parse_completion
    monkeypatch.setattr(Conversation, "parse_completion", lambda say, rollout: replace(read(say, rollout), thought=" "))
    _, account = rejection_sampling.sample_teacher(config(folder, script="latin"))
    assert account["dropped_no_thought"] > 0 == account.get("kept", 0)
    _, account = rejection_sampling.sample_teacher(config(folder))
    assert account["kept"] > 0


def test_an_answer_that_was_cut_off_is_dropped_though_it_is_right(folder: Path, monkeypatch: pytest.MonkeyPatch):
    judge = rejection_sampling.grade

    def lenient(*given: Any) -> list[Group]:
        return [Group(g.problem, g.rollouts, tuple(Verdict(1.0) for _ in g.rollouts)) for g in judge(*given)]

    monkeypatch.setattr(rejection_sampling, "grade", lenient)
    rows, account = rejection_sampling.sample_teacher(config(folder, **{"sampling.max_new_tokens": 2}))
    assert (rows, account["dropped_wrong"]) == ([], account["rollouts"])


def test_the_student_sees_more_than_one_batch_of_what_was_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, demonstrate = set(), Conversation.demonstration_rollouts

    def note(say: Conversation, lessons: Any, keys: Any) -> Any:
        seen.update(lesson.problem.id for lesson in lessons)
        return demonstrate(say, lessons, keys)

    monkeypatch.setattr(Conversation, "demonstrate_all", note)
    train(tmp_path / "run", config(folder, steps=6))
    assert len(seen) > 8  # of batches of 4


def test_lessons_that_were_changed_between_two_sittings_are_refused(folder: Path, tmp_path: Path):
    run = train(tmp_path / "run", config(folder, save_every=2, steps=4))
    shutil.copytree(run.folder, tmp_path / "cut" / "run")
    kept = tmp_path / "cut" / "run" / "kept.jsonl"
    kept.write_text(kept.read_text().replace("Say", "Tell"))
    told = tmp_path / "cut" / "run" / "manifest.json"
    told.write_text(told.read_text().replace(str(run.folder), str(kept.parent)).replace('"finished"', '"stopped"'))
    with pytest.raises(SchoolError, match=r"kept\.jsonl"):
        train(kept.parent, config(folder, save_every=2, steps=4))


def test_a_teacher_that_is_never_right_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="nothing was kept"):
        train(tmp_path / "run", config(folder, teacher=str(folder / "base"), **{"sampling.max_new_tokens": 1}))


def test_a_lesson_is_what_the_teacher_said(folder: Path):
    rows, _ = rejection_sampling.sample_teacher(config(folder, num_prompts=8))
    lesson = from_row(rows[0])
    assert isinstance(lesson, Demonstration)
    policy = Policy.load(folder / "teacher")
    rollout = policy.conversation.demonstration_rollout(lesson, Key(0, "t"))
    reply = policy.conversation.parse_completion(rollout)
    assert (reply.thought, reply.answer) == (rows[0]["thought"], rows[0]["said"])
