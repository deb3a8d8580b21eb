"""What one step of practice hands on: every switch of the config, in its place."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from schoolhouse.algorithms.advantages import group_advantage, uses_group_baseline
from schoolhouse.algorithms.groups import drop_constant_reward_groups, rollouts_of
from schoolhouse.algorithms.losses import policy_gradient
from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import grpo
from schoolhouse.recipes.grpo import Config
from schoolhouse.runs.run import Run
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, Verdict

TASK = "school:facts"


def group(at: int, *scores: float, finish: Any = "stop") -> Group:
    problem = Problem(f"p{at}", (), "1")
    rollouts = tuple(
        Rollout(
            problem,
            Key(0, "t", 0, at, g),
            (1, *[2] * (g + 2)),
            (False, *[True] * (g + 2)),
            (NAN, *[-0.5] * (g + 2)),
            (1,),
            finish,
        )
        for g in range(len(scores))
    )
    return Group(problem, rollouts, tuple(map(Verdict, scores)))


GROUPS = [group(0, 1.0, 0.0, 0.0), group(1, 1.0, 1.0, 0.0), group(2, 1.0, 1.0, 1.0), group(3, 0.0, 0.0, 1.0)]


class Recorder:
    """A policy that only remembers what it is asked, and at which temperature."""

    shares_prompts = False

    def __init__(self, logprob: float) -> None:
        self.logprob, self.heat, self.steps = logprob, list[float](), list[Any]()

    def score(self, rollouts: list[Rollout], temperature: float) -> list[Any]:
        self.heat.append(temperature)
        return [SimpleNamespace(logprob=torch.full((len(r),), self.logprob)) for r in rollouts]

    def update(
        self, batches: Any, objective: Any, rate: float, clip: float, heat: float, limit: float, watch: Any
    ) -> Any:
        self.heat.append(heat)
        self.steps.append((batches, rate, clip, limit, watch))
        return {"logprob_gap": 0.0}


def learned(groups: list[Group] = GROUPS, **keys: Any) -> tuple[Config, Recorder, Recorder]:
    c = Config.of(model="m", **{"sampling.temperature": 0.7}, **{"sampling.max_new_tokens": 8}, **keys)
    policy, reference = Recorder(-0.4), Recorder(-0.9)
    grpo.learn(c, cast(Any, policy), cast(Any, reference), policy_gradient(), groups, 0.003)
    return c, policy, reference


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("updates", [1, 2])
def test_weights_are_a_mean_over_the_whole_step_in_each_part(aggregate: str, updates: int):
    """The group that agrees carries no gradient, and counts in the denominator."""
    _, policy, _ = learned(
        **{"loss.aggregation": aggregate}, num_minibatches=updates, **{"loss.kl_coef": 0.1}
    )  # a KL penalty trains all groups
    whole = {
        "token_mean": 1.0,
        "sequence_mean": 1.0,
        "constant": sum(len(r) - 1 for r in rollouts_of(GROUPS)) / (12 * 8),
    }
    totals = [sum(float(batch.weight.sum()) for batch in batches) for batches, *_ in policy.steps]
    assert sum(totals) / updates == pytest.approx(whole[aggregate])
    _, policy, _ = learned(**{"loss.aggregation": aggregate})
    told = sum(float(batch.weight.sum()) for batch in policy.steps[0][0])
    assert told == pytest.approx(whole[aggregate] * 3 / 4)


def test_a_constant_of_ones_own_divides():
    sums = [
        sum(
            float(b.weight.sum())
            for b in learned(**{"loss.aggregation": "constant"}, **{"loss.divisor": n})[1].steps[0][0]
        )
        for n in (8, 16)
    ]
    assert sums[0] == pytest.approx(2 * sums[1])


def test_advantages_are_those_of_the_whole_step_and_weakened():
    for keys in (
        {"advantage.baseline": "mean", "advantage.scale_rewards": "batch_std"},
        {"advantage.baseline": "batch_mean", "advantage.scale_rewards": "batch_std", "advantage.negative_scale": 0.25},
        {"advantage.scale_rewards": "group_std", "advantage.std_ddof": 0, "advantage.std_eps": 0.5},
    ):
        c, policy, _ = learned(**cast(Any, keys))
        signal = drop_constant_reward_groups(GROUPS) if uses_group_baseline(c.advantage.baseline) else GROUPS
        expected = group_advantage(
            signal,
            c.advantage.baseline,
            c.advantage.scale_rewards,
            c.advantage.std_eps,
            c.advantage.std_ddof,
            scope=GROUPS,
        )
        wanted = sorted(
            round(float(a[-1]) * (c.advantage.negative_scale if a[-1] < 0 else 1.0), 5) for a in expected for _ in a[1:]
        )
        found = sorted(
            round(a, 5) for batch in policy.steps[0][0] for a in batch["advantage"][batch.loss_mask].tolist()
        )
        assert found == wanted


def test_everything_is_scored_at_the_temperature_it_was_sampled_at():
    _, policy, reference = learned(num_minibatches=2, **{"loss.kl_coef": 0.1})
    assert {*policy.heat, *reference.heat} == {0.7}
    assert len(reference.heat) == 1
    (batches, rate, *_), *_ = policy.steps
    assert rate == 0.003
    batch = batches[0]
    assert float(batch["old"][batch.loss_mask][0]) == pytest.approx(-0.4)
    assert float(batch["reference"][batch.loss_mask][0]) == pytest.approx(-0.9)


def test_with_a_lag_the_sampled_policy_is_the_old_one_unless_it_is_corrected():
    _, policy, _ = learned(max_policy_lag=1)
    (batch, *_), *_ = policy.steps[0]
    assert set(batch["old"][batch.loss_mask].tolist()) == {-0.5}
    _, policy, _ = learned(max_policy_lag=1, **{"loss.importance_correction": "token"})
    (batch, *_), *_ = policy.steps[0]
    assert batch["old"][batch.loss_mask].tolist() == pytest.approx([-0.4] * int(batch.loss_mask.sum()))


def test_what_was_cut_off_can_be_masked():
    cut = [group(0, 1.0, 0.0, finish="length"), group(1, 1.0, 0.0)]
    _, policy, _ = learned(cut, **{"loss.mask_truncated": True})
    assert sum(len(batch.lengths) for batch in policy.steps[0][0]) == 2


def test_the_objective_has_what_the_config_says(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}
    for name in ("clipped_surrogate", "cispo", "corrected", "kl_penalty"):
        monkeypatch.setattr(grpo, name, lambda *a, _n=name, **k: seen.update({_n: (a, k)}) or policy_gradient())
    grpo.make_loss(
        Config.of(
            model="m",
            **{"loss.clip_low": 0.1},
            **{"loss.clip_high": 0.3},
            **{"loss.clip_ratio_c": 3.0},
            num_minibatches=2,
            **{"loss.importance_correction": "product"},
            **{"loss.importance_correction_cap": 5.0},
            **{"loss.importance_correction_mask": True},
            **{"loss.kl_coef": 0.1},
            **{"loss.kl_estimator": "k2"},
        )
    )
    assert seen["clipped_surrogate"] == ((0.1, 0.3, "token", 3.0), {"on_policy": False})
    assert seen["corrected"][0][1:] == ("product", 5.0, False, True)
    assert seen["kl_penalty"] == (("k2",), {})
    grpo.make_loss(Config.model_validate({"model": "m", "preset": "cispo"}))
    assert seen["cispo"] == ((4.0,), {"on_policy": True})


def practised(
    taught: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any
) -> list[tuple[Policy, list[Group], float]]:
    """What `learn` is given in each step of a short run."""
    seen = []
    real = grpo.learn

    def learn(c: Any, policy: Any, reference: Any, objective: Any, groups: Any, rate: float) -> Any:
        seen.append((policy, groups, rate))
        return real(c, policy, reference, objective, groups, rate)

    monkeypatch.setattr(grpo, "learn", learn)
    given = {
        "task": TASK,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling.max_new_tokens": 24,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 0,
        "precision": "float32",
    }
    c = Config.model_validate({"model": str(taught(TASK)), "steps": 2, **given, **keys})
    with Run.open(folder, c, "grpo") as run:
        grpo.grpo(c, run)
    return seen


def test_kl_in_reward_is_towards_the_starting_model(taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """r - beta (log pi - log pi_ref), of the whole reply: what has become likelier costs."""
    steps, told = [], grpo.kl_in_reward

    def note(groups: Any, now: Any, then: Any, beta: float) -> Any:
        steps.append((rollouts_of(groups), now, then, beta))
        return told(groups, now, then, beta)

    monkeypatch.setattr(grpo, "kl_in_reward", note)
    practised(
        taught,
        tmp_path,
        monkeypatch,
        **{"rewards.kl_coef": 0.5},
        **{"sampling.temperature": 0.7},
        **{"rewards.control": "random"},
    )
    start = Policy.load(taught(TASK), "float32")
    for said, _, then, beta in steps:
        assert beta == 0.5
        expected = [scored.logprob.tolist() for scored in start.score(said, 0.7)]
        assert all(a == pytest.approx(b, nan_ok=True, abs=1e-5) for a, b in zip(then, expected, strict=True))
    apart = [
        max(abs(a - b) for x, y in zip(now, then, strict=True) for a, b in zip(x, y, strict=True) if a == a)
        for _, now, then, _ in steps
    ]
    assert apart[0] < 1e-5 < 1e-3 < apart[1]


@pytest.mark.fault("verifier hangs")
def test_rollouts_that_could_not_be_judged_are_left_out(taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = grpo.grade

    def judge(*given: Any) -> list[Group]:
        return [Group(g.problem, g.rollouts, (Verdict(None, "clock"), *g.verdicts[1:])) for g in real(*given)]

    monkeypatch.setattr(grpo, "grade", judge)
    for _, groups, _ in practised(taught, tmp_path, monkeypatch):
        assert [len(g.rollouts) for g in groups] == [3] * 4


def test_manners_brevity_and_length_are_part_of_what_is_praised(
    taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = {"rewards.format": 0.5, "rewards.length": 0.2, "rewards.overlong_buffer": 20}
    for _, groups, _ in practised(taught, tmp_path, monkeypatch, **keys):
        parts = {name for g in groups for verdict in g.verdicts for name in verdict.parts}
        assert {"form", "overlong"} <= parts
        assert any(v.reward not in (0.0, 0.5, 1.0, 1.5) for g in groups for v in g.verdicts)


def test_the_rate_follows_the_schedule(taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rates = [rate for *_, rate in practised(taught, tmp_path, monkeypatch, **{"optimizer.warmup_steps": 2}, steps=3)]
    assert rates == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
