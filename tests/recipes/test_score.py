"""SCoRe: what each attempt is praised for, and that the run resumes to the same bits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schoolhouse.recipes import pretrain, score, sft
from schoolhouse.run import Run, read_metrics
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, SchoolError, Verdict

PROBLEM = Problem("p", (), "1")
TASK = "school:facts?again=50"
MODEL = {"width": 32, "layers": 1, "heads": 1, "key_heads": 1, "head_dim": 32, "inner": 32, "longest": 256}


def groups(*scores: float | None) -> list[Group]:
    keys = [Key(0, "t", 0, 0, g) for g in range(len(scores))]
    rollouts = tuple(Rollout(PROBLEM, key, (1, 2), (False, True), (NAN, -0.1), (1,), "stop") for key in keys)
    return [Group(PROBLEM, rollouts, tuple(Verdict(s, "" if s is not None else "clock") for s in scores))]


def scores(made: list[Group]) -> list[float | None]:
    return [verdict.score for group in made for verdict in group.verdicts]


def test_the_second_attempt_is_praised_for_what_it_changed():
    """Kumar et al. 2024, section 5.2, alpha 10: 0 -> 0, 0 -> 1, 1 -> 1, 1 -> 0."""
    early, late = score.rewards(groups(0.0, 0.0, 1.0, 1.0), groups(0.0, 1.0, 1.0, 0.0), alpha=10.0)
    assert scores(late) == [0.0, 11.0, 1.0, -10.0]
    assert scores(early) == [0.0, 0.0, 1.0, 1.0]


def test_the_first_attempt_may_be_praised_for_what_follows_it():
    early, _ = score.rewards(groups(0.0, 1.0), groups(1.0, 1.0), alpha=10.0, ahead=0.5)
    assert scores(early) == [5.5, 1.5]


def test_a_pair_of_which_one_could_not_be_judged_is_praised_for_nothing():
    early, late = score.rewards(groups(None, 1.0), groups(1.0, None), alpha=10.0)
    assert scores(early) == scores(late) == [None, None]


def two_turns(*pairs: tuple[float | None, float | None]) -> tuple[list[Group], list[Group]]:
    """Groups of first attempts (two tokens) and of both (two more, behind a question)."""
    first, both = [], []
    for g in range(len(pairs)):
        key = Key(0, "t", 0, 0, g)
        written = (False, True, True, False, True, True)
        logprob = tuple(-0.1 if w else NAN for w in written)
        both.append(Rollout(PROBLEM, key, (1, 2, 3, 4, 5, 6), written, logprob, (1, 4), "stop"))
        first.append(Rollout(PROBLEM, key, (1, 2, 3), written[:3], logprob[:3], (1,), "stop"))
    verdicts = [tuple(Verdict(s, "" if s is not None else "clock") for s in row) for row in zip(*pairs, strict=True)]
    return [Group(PROBLEM, tuple(first), verdicts[0])], [Group(PROBLEM, tuple(both), verdicts[1])]


def packed(monkeypatch: pytest.MonkeyPatch, stage_one: bool, *pairs: tuple[float | None, float | None]) -> Any:
    """What an update learns from: the rollouts, and their rows."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(score, "pack", lambda rollouts, *_, **rows: seen.update(rows, rollouts=rollouts))
    scored = SimpleNamespace(score=lambda rollouts, _: [SimpleNamespace(logprob=r.logprob) for r in rollouts])
    policy: Any = SimpleNamespace(shares=False, update=lambda *_: {})
    c = score.Config(model="m", kl=0.01, kl_first=0.5)
    score.learn(c, policy, cast(Any, scored), *two_turns(*pairs), stage_one, 1e-4)
    return seen


def test_stage_one_holds_first_attempts_and_praises_second_ones(monkeypatch: pytest.MonkeyPatch):
    found = packed(monkeypatch, True, (1.0, 1.0), (0.0, 0.0))
    assert found["advantage"] == [[0, 0, 0, 0, 0.5, 0.5], [0, 0, 0, 0, -0.5, -0.5]]
    assert found["toll"] == [[0.5, 0.5, 0.5, 0.01, 0.01, 0.01]] * 2


def test_stage_two_praises_both_and_holds_both_alike(monkeypatch: pytest.MonkeyPatch):
    """From right to right 1 is earned, from wrong to right 11."""
    found = packed(monkeypatch, False, (1.0, 1.0), (0.0, 1.0))
    assert found["advantage"] == [[0, 0.5, 0.5, 0, -5, -5], [0, -0.5, -0.5, 0, 5, 5]]
    assert found["toll"] == [[0.01] * 6] * 2


@pytest.mark.fault("verifier hangs")
def test_pairs_that_could_not_be_judged_are_left_out_of_the_loss(monkeypatch: pytest.MonkeyPatch):
    found = packed(monkeypatch, False, (1.0, 1.0), (None, 1.0), (0.0, None), (0.0, 0.0))
    assert [rollout.key.sample for rollout in found["rollouts"]] == [0, 3]
    assert len(found["advantage"]) == len(found["toll"]) == 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    book = pretrain.Config(
        task="school:facts", model=pretrain.Model(**MODEL), vocabulary=300, steps=3, batch=4, context=32
    )
    with Run.open(folder / "book", book, "pretrain") as run:
        pretrain.pretrain(book, run)
    lessons = sft.Config(model=str(run.model), task=TASK, steps=30, batch=16, learning_rate=1e-2)
    with Run.open(folder / "lessons", lessons, "sft") as run:
        sft.sft(lessons, run)
    return run.model


def config(model: Path, **changes: Any) -> score.Config:
    given: dict[str, Any] = {
        "task": "school:facts",
        "steps": 2,
        "first_stage": 1,
        "problems": 4,
        "samples": 4,
        "length": 12,
    }
    return score.Config(model=str(model), **{**given, **changes})


def train(folder: Path, c: score.Config) -> Run:
    with Run.open(folder, c, "score") as run:
        score.score(c, run)
    return run


def test_each_step_tells_both_attempts(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model)).folder)
    assert [row["delta"] for row in rows] == pytest.approx([r["wrong_to_right"] - r["right_to_wrong"] for r in rows])
    assert all(0.0 <= row["changed"] <= 1.0 for row in rows)


def test_a_run_that_was_stopped_ends_in_the_same_numbers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train(tmp_path / "whole", config(model, save_every=1))
    learn = score.learn

    def tired(*args: Any) -> Any:
        if args[5] is False:  # stage II
            raise KeyboardInterrupt
        return learn(*args)

    monkeypatch.setattr(score, "learn", tired)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config(model, save_every=1))
    monkeypatch.undo()
    again = train(tmp_path / "cut", config(model, save_every=1))
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_attempts_that_do_not_fit_into_the_model_are_refused(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="the model reads 256: lower `length`"):
        train(tmp_path / "run", config(model, length=120))
