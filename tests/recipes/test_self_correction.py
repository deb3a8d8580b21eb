"""SCoRe: the rewards of each attempt, and that a run resumes to the same numbers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schoolhouse.recipes import self_correction
from schoolhouse.runs.run import read_metrics
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, SchoolError
from tiny_groups import group, rewards_of, verdict
from tiny_runs import metrics_text, train

PROBLEM = Problem("p", (), "1")


# --- rewards


def test_the_second_attempt_is_rewarded_for_what_it_changed():
    """Kumar et al. 2024, section 5.2, alpha 10: 0 -> 0, 0 -> 1, 1 -> 1, 1 -> 0."""
    first, second = [group(0.0, 0.0, 1.0, 1.0)], [group(0.0, 1.0, 1.0, 0.0)]
    early, late = self_correction.shape_rewards(first, second, alpha=10.0)
    assert rewards_of(late) == [0.0, 11.0, 1.0, -10.0]
    assert rewards_of(early) == [0.0, 0.0, 1.0, 1.0]


def test_the_first_attempt_may_be_rewarded_for_the_second():
    first, second = [group(0.0, 1.0)], [group(1.0, 1.0)]
    early, _ = self_correction.shape_rewards(first, second, alpha=10.0, future_reward_weight=0.5)
    assert rewards_of(early) == [5.5, 1.5]


def test_a_pair_with_an_ungraded_attempt_has_no_rewards():
    early, late = self_correction.shape_rewards([group(None, 1.0)], [group(1.0, None)], alpha=10.0)
    assert rewards_of(early) == rewards_of(late) == [None, None]


# --- what an update learns from


def two_turns(*rewards: tuple[float | None, float | None]) -> tuple[list[Group], list[Group]]:
    """Groups of first attempts (two tokens), and of both attempts (two more, behind a request of one token)."""
    first, both = [], []
    for g in range(len(rewards)):
        key, mask = Key(0, "t", 0, 0, g), (False, True, True, False, True, True)
        logprob = tuple(-0.1 if sampled else NAN for sampled in mask)
        both.append(Rollout(PROBLEM, key, (1, 2, 3, 4, 5, 6), mask, logprob, (1, 4), "stop"))
        first.append(Rollout(PROBLEM, key, (1, 2, 3), mask[:3], logprob[:3], (1,), "stop"))
    first_verdicts, second_verdicts = (tuple(map(verdict, row)) for row in zip(*rewards, strict=True))
    return [Group(PROBLEM, tuple(first), first_verdicts)], [Group(PROBLEM, tuple(both), second_verdicts)]


def packed(
    monkeypatch: pytest.MonkeyPatch, stage_one: bool, *rewards: tuple[float | None, float | None]
) -> dict[str, Any]:
    """The rollouts and columns of an update."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(self_correction, "pack", lambda rollouts, *_, **rows: found.update(rows, rollouts=rollouts))
    reference = SimpleNamespace(score=lambda rollouts, _: [SimpleNamespace(logprob=r.logprob) for r in rollouts])
    policy: Any = SimpleNamespace(shares_prompts=False, update=lambda *_: {})
    c = self_correction.Config.of(model="m", kl_coef=0.01, stage1_kl_coef=0.5)
    self_correction.learn(c, policy, cast(Any, reference), *two_turns(*rewards), stage_one, 1e-4)
    return found


def test_stage_one_holds_first_attempts_and_rewards_second_ones(monkeypatch: pytest.MonkeyPatch):
    found = packed(monkeypatch, True, (1.0, 1.0), (0.0, 0.0))
    assert found["advantage"] == [[0, 0, 0, 0, 0.5, 0.5], [0, 0, 0, 0, -0.5, -0.5]]
    assert found["kl_coef"] == [[0.5, 0.5, 0.5, 0.01, 0.01, 0.01]] * 2


def test_stage_two_rewards_both_and_holds_both_alike(monkeypatch: pytest.MonkeyPatch):
    """From right to right earns 1, from wrong to right 11."""
    found = packed(monkeypatch, False, (1.0, 1.0), (0.0, 1.0))
    assert found["advantage"] == [[0, 0.5, 0.5, 0, -5, -5], [0, -0.5, -0.5, 0, 5, 5]]
    assert found["kl_coef"] == [[0.01] * 6] * 2


@pytest.mark.fault("verifier hangs")
def test_ungraded_pairs_are_left_out_of_the_loss(monkeypatch: pytest.MonkeyPatch):
    found = packed(monkeypatch, False, (1.0, 1.0), (None, 1.0), (0.0, None), (0.0, 0.0))
    assert [rollout.key.sample for rollout in found["rollouts"]] == [0, 3]
    assert len(found["advantage"]) == len(found["kl_coef"]) == 2


# --- runs


@pytest.fixture(scope="module")
def model(sft_model: Callable[[str], Path]) -> Path:
    """A model that has seen second attempts."""
    return sft_model("school:facts?revision_percent=50")


def config(model: Path, **keys: Any) -> self_correction.Config:
    defaults: dict[str, Any] = {
        "task": "school:facts",
        "steps": 2,
        "stage1_steps": 1,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling.max_new_tokens": 12,
        "save_every": 1,
    }
    return self_correction.Config.of(model=str(model), **{**defaults, **keys})


def test_each_step_records_both_attempts(model: Path, tmp_path: Path):
    rows = read_metrics(train(tmp_path / "run", config(model)).folder)
    assert len(rows) == 2
    assert [row["delta"] for row in rows] == pytest.approx([r["wrong_to_right"] - r["right_to_wrong"] for r in rows])
    assert all(0.0 <= row["changed"] <= 1.0 for row in rows)


def test_the_reference_never_builds_an_optimizer(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    references, learn = [], self_correction.learn

    def recorded(c: Any, policy: Any, reference: Any, *rest: Any) -> Any:
        references.append(reference)
        return learn(c, policy, reference, *rest)

    monkeypatch.setattr(self_correction, "learn", recorded)
    train(tmp_path / "run", config(model))
    assert len(references) == 2
    assert all("learner" not in reference.__dict__ for reference in references)


def test_a_run_interrupted_in_stage_two_resumes_to_the_same_numbers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, learn = train(tmp_path / "whole", config(model)), self_correction.learn

    def interrupt_in_stage_two(*args: Any) -> Any:
        if args[5] is False:
            raise KeyboardInterrupt
        return learn(*args)

    with monkeypatch.context() as patch:
        patch.setattr(self_correction, "learn", interrupt_in_stage_two)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", config(model))
    assert len(read_metrics(tmp_path / "cut")) == 1
    assert metrics_text(train(tmp_path / "cut", config(model))) == metrics_text(whole)


def test_attempts_that_do_not_fit_into_the_model_are_refused(model: Path, tmp_path: Path):
    with pytest.raises(SchoolError, match="the model can read at most 256 tokens: lower max_new_tokens"):
        train(tmp_path / "run", config(model, **{"sampling.max_new_tokens": 120}))
