"""SCoRe: what each attempt is praised for, and that the run resumes to the same bits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schoolhouse.recipes import pretrain, self_correction, sft
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, SchoolError, Verdict

PROBLEM = Problem("p", (), "1")
TASK = "school:facts?revision_percent=50"
MODEL = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 32,
    "max_seq_len": 256,
}


def groups(*scores: float | None) -> list[Group]:
    keys = [Key(0, "t", 0, 0, g) for g in range(len(scores))]
    rollouts = tuple(Rollout(PROBLEM, key, (1, 2), (False, True), (NAN, -0.1), (1,), "stop") for key in keys)
    return [Group(PROBLEM, rollouts, tuple(Verdict(s, "" if s is not None else "clock") for s in scores))]


def scores(made: list[Group]) -> list[float | None]:
    return [verdict.reward for group in made for verdict in group.verdicts]


def test_the_second_attempt_is_praised_for_what_it_changed():
    """Kumar et al. 2024, section 5.2, alpha 10: 0 -> 0, 0 -> 1, 1 -> 1, 1 -> 0."""
    early, late = self_correction.shape_rewards(groups(0.0, 0.0, 1.0, 1.0), groups(0.0, 1.0, 1.0, 0.0), alpha=10.0)
    assert scores(late) == [0.0, 11.0, 1.0, -10.0]
    assert scores(early) == [0.0, 0.0, 1.0, 1.0]


def test_the_first_attempt_may_be_praised_for_what_follows_it():
    early, _ = self_correction.shape_rewards(groups(0.0, 1.0), groups(1.0, 1.0), alpha=10.0, future_reward_weight=0.5)
    assert scores(early) == [5.5, 1.5]


def test_a_pair_of_which_one_could_not_be_judged_is_praised_for_nothing():
    early, late = self_correction.shape_rewards(groups(None, 1.0), groups(1.0, None), alpha=10.0)
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
    monkeypatch.setattr(self_correction, "pack", lambda rollouts, *_, **rows: seen.update(rows, rollouts=rollouts))
    scored = SimpleNamespace(score=lambda rollouts, _: [SimpleNamespace(logprob=r.logprob) for r in rollouts])
    policy: Any = SimpleNamespace(shares_prompts=False, update=lambda *_: {})
    c = self_correction.Config.of(model="m", kl_coef=0.01, stage1_kl_coef=0.5)
    self_correction.learn(c, policy, cast(Any, scored), *two_turns(*pairs), stage_one, 1e-4)
    return seen


def test_stage_one_holds_first_attempts_and_praises_second_ones(monkeypatch: pytest.MonkeyPatch):
    found = packed(monkeypatch, True, (1.0, 1.0), (0.0, 0.0))
    assert found["advantage"] == [[0, 0, 0, 0, 0.5, 0.5], [0, 0, 0, 0, -0.5, -0.5]]
    assert found["kl_coef"] == [[0.5, 0.5, 0.5, 0.01, 0.01, 0.01]] * 2


def test_stage_two_praises_both_and_holds_both_alike(monkeypatch: pytest.MonkeyPatch):
    """From right to right 1 is earned, from wrong to right 11."""
    found = packed(monkeypatch, False, (1.0, 1.0), (0.0, 1.0))
    assert found["advantage"] == [[0, 0.5, 0.5, 0, -5, -5], [0, -0.5, -0.5, 0, 5, 5]]
    assert found["kl_coef"] == [[0.01] * 6] * 2


@pytest.mark.fault("verifier hangs")
def test_pairs_that_could_not_be_judged_are_left_out_of_the_loss(monkeypatch: pytest.MonkeyPatch):
    found = packed(monkeypatch, False, (1.0, 1.0), (None, 1.0), (0.0, None), (0.0, 0.0))
    assert [rollout.key.sample for rollout in found["rollouts"]] == [0, 3]
    assert len(found["advantage"]) == len(found["kl_coef"]) == 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    book = pretrain.Config.of(
        task="school:facts", model=pretrain.Model(**MODEL), vocab_size=300, steps=3, batch_size=4, seq_len=32
    )
    with Run.open(folder / "book", book, "pretrain") as run:
        pretrain.pretrain(book, run)
    lessons = sft.Config.of(
        model=str(run.model), task=TASK, steps=30, batch_size=16, **{"optimizer.learning_rate": 1e-2}
    )
    with Run.open(folder / "lessons", lessons, "sft") as run:
        sft.sft(lessons, run)
    return run.model


def config(model: Path, **changes: Any) -> self_correction.Config:
    given: dict[str, Any] = {
        "task": "school:facts",
        "steps": 2,
        "stage1_steps": 1,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling.max_new_tokens": 12,
    }
    return self_correction.Config.of(model=str(model), **{**given, **changes})


def train(folder: Path, c: self_correction.Config) -> Run:
    with Run.open(folder, c, "self_correction") as run:
        self_correction.self_correction(c, run)
    return run


def test_each_step_tells_both_attempts(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model)).folder)
    assert [row["delta"] for row in rows] == pytest.approx([r["wrong_to_right"] - r["right_to_wrong"] for r in rows])
    assert all(0.0 <= row["changed"] <= 1.0 for row in rows)


def test_a_run_that_was_stopped_ends_in_the_same_numbers(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train(tmp_path / "whole", config(model, save_every=1))
    learn = self_correction.learn

    def tired(*args: Any) -> Any:
        if args[5] is False:  # stage II
            raise KeyboardInterrupt
        return learn(*args)

    monkeypatch.setattr(self_correction, "learn", tired)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config(model, save_every=1))
    monkeypatch.undo()
    again = train(tmp_path / "cut", config(model, save_every=1))
    assert (again.folder / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_attempts_that_do_not_fit_into_the_model_are_refused(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="the model reads 256: lower `length`"):
        train(tmp_path / "run", config(model, **{"sampling.max_new_tokens": 120}))
