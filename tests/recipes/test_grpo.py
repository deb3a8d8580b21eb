"""One step of GRPO: every key of the config, and what it changes."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch

from schoolhouse.algorithms.advantages import group_advantage, subtract_to_go, uses_group_baseline
from schoolhouse.algorithms.groups import drop_constant_reward_groups, rollouts_of
from schoolhouse.algorithms.losses import policy_gradient
from schoolhouse.algorithms.packing import Batch
from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import grpo
from schoolhouse.recipes.grpo import Config
from schoolhouse.types import Group, Rollout, Verdict
from tiny_groups import group
from tiny_runs import train

TASK = "school:facts"
REWARDS = [(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0)]
GROUPS = [group(*rewards, problem=problem) for problem, rewards in enumerate(REWARDS)]
"""Four groups, of which one carries no signal. Completions have 1, 2 and 3 tokens; the sampler's logprob is -1."""

SftModel = Callable[[str], Path]


class Update(NamedTuple):
    """The arguments of one `Policy.update`."""

    batches: Sequence[Batch]
    rate: float
    temperature: float
    max_logprob_gap: float
    metrics_fn: Any

    def column(self, name: str) -> list[float]:
        """A column in the loss mask, of all batches."""
        return [value for batch in self.batches for value in batch[name][batch.loss_mask].tolist()]

    @property
    def weight(self) -> float:
        return sum(float(batch.weight.sum()) for batch in self.batches)

    @property
    def num_rollouts(self) -> int:
        return sum(len(batch.lengths) for batch in self.batches)


class RecordingPolicy:
    """A test double of a policy: one log-probability for every token, and a record of each call."""

    shares_prompts = False

    def __init__(self, logprob: float) -> None:
        self.logprob, self.score_temperatures, self.updates = logprob, list[float](), list[Update]()

    def score(self, rollouts: list[Rollout], temperature: float) -> list[Any]:
        self.score_temperatures.append(temperature)
        return [SimpleNamespace(logprob=torch.full((len(rollout),), self.logprob)) for rollout in rollouts]

    def update(
        self,
        batches: Sequence[Batch],
        loss_fn: Any,
        rate: float,
        max_grad_norm: float,
        temperature: float,
        max_logprob_gap: float,
        metrics_fn: Any,
    ) -> dict[str, float]:
        self.updates.append(Update(batches, rate, temperature, max_logprob_gap, metrics_fn))
        return {"logprob_gap": float(len(self.updates))}


def learn(
    groups: Sequence[Group] = GROUPS, /, **keys: Any
) -> tuple[Config, RecordingPolicy, RecordingPolicy, dict[str, Any]]:
    """The config of one step of learning, its policy, its reference and its metrics."""
    c = Config.of(model="m", **{"sampling.temperature": 0.7, "sampling.max_new_tokens": 8, **keys})
    policy, reference = RecordingPolicy(-0.5), RecordingPolicy(-0.75)
    stats = grpo.learn(c, cast(Any, policy), cast(Any, reference), policy_gradient(), groups, 0.003)
    return c, policy, reference, stats


def updates_of(groups: Sequence[Group] = GROUPS, /, **keys: Any) -> list[Update]:
    return learn(groups, **keys)[1].updates


# --- weights, advantages, columns


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_weights_of_each_minibatch_are_a_mean_over_the_whole_step(aggregation: str, num_minibatches: int):
    """The group of equal rewards has no gradient, and still counts in the denominator."""
    keys = {"loss.aggregation": aggregation}
    num_tokens = 4 * (1 + 2 + 3)
    expected = {
        "token_mean": 1.0,
        "sequence_mean": 1.0,
        "sequence_sum": num_tokens / 12,
        "constant": num_tokens / (12 * 8),
    }[aggregation]
    updates = updates_of(num_minibatches=num_minibatches, **keys, **{"loss.kl_coef": 0.1})  # KL trains all groups
    assert len(updates) == num_minibatches
    assert [update.weight for update in updates] == pytest.approx([expected] * num_minibatches)
    (update,) = updates_of(**keys)
    assert update.weight == pytest.approx(expected * 3 / 4)


def test_the_divisor_of_the_aggregation_constant_can_be_set():
    keys = {"loss.aggregation": "constant"}
    weights = [updates_of(**keys, **{"loss.divisor": divisor})[0].weight for divisor in (8, 16)]
    assert weights[0] == pytest.approx(2 * weights[1])
    assert weights[0] == pytest.approx(updates_of(**keys)[0].weight)  # 0: sampling.max_new_tokens, 8


@pytest.mark.parametrize(
    "keys",
    [
        {"advantage.baseline": "mean", "advantage.scale_rewards": "batch_std"},
        {"advantage.baseline": "batch_mean", "advantage.scale_rewards": "batch_std", "advantage.negative_scale": 0.25},
        {"advantage.scale_rewards": "group_std", "advantage.std_ddof": 0, "advantage.std_eps": 0.5},
    ],
)
def test_advantages_are_those_of_the_whole_step_and_negatives_are_scaled(keys: dict[str, Any]):
    c, policy, *_ = learn(**keys)
    a = c.advantage
    signal = drop_constant_reward_groups(GROUPS) if uses_group_baseline(a.baseline) else GROUPS
    rows = group_advantage(signal, a.baseline, a.scale_rewards, a.std_eps, a.std_ddof, scope=GROUPS)
    expected = [
        advantage * (a.negative_scale if advantage < 0 else 1.0)
        for row, rollout in zip(rows, rollouts_of(signal), strict=True)
        for advantage, mask in zip(row, rollout.loss_mask, strict=True)
        if mask
    ]
    assert sorted(policy.updates[0].column("advantage")) == pytest.approx(sorted(expected), abs=1e-5)


def test_rollouts_are_scored_and_learned_at_the_temperature_they_were_sampled_at():
    _, policy, reference, _ = learn(**{"num_minibatches": 2, "loss.kl_coef": 0.1})
    assert policy.score_temperatures == reference.score_temperatures == [0.7]
    assert [update.temperature for update in policy.updates] == [0.7, 0.7]


def test_each_update_has_the_rate_and_the_columns_of_the_three_policies():
    for update in updates_of(**{"num_minibatches": 2, "loss.kl_coef": 0.1}):
        assert update.rate == 0.003
        assert set(update.column("old")) == {-0.5}
        assert set(update.column("reference")) == {-0.75}
        assert set(update.column("sampled")) == {-1.0}


def test_an_on_policy_step_scores_nothing_and_needs_no_old_column():
    _, policy, reference, _ = learn()
    assert policy.score_temperatures == reference.score_temperatures == []
    assert policy.updates[0].batches[0].columns.keys() == {"advantage", "sampled"}
    assert policy.updates[0].metrics_fn is None


def test_with_a_policy_lag_the_sampler_is_the_old_policy():
    (update,) = updates_of(max_policy_lag=1)
    assert set(update.column("old")) == {-1.0}


def test_with_a_policy_lag_and_importance_correction_the_old_policy_is_scored():
    (update,) = updates_of(**{"max_policy_lag": 1, "loss.importance_correction": "token"})
    assert set(update.column("old")) == {-0.5}


def test_dppo_compares_with_the_sampler_and_scores_nothing():
    _, policy, _, _ = learn(**{"loss.type": "dppo", "num_minibatches": 2})
    assert policy.score_temperatures == []
    for update in policy.updates:
        assert set(update.column("old")) == {-1.0}
        assert update.metrics_fn.keywords["divergence"] == "tv"


KL_TO_GO = {"rewards.kl_coef": 2.0, "rewards.kl_to_go": True, "advantage.baseline": "mean"}


def test_policy_gradient_compares_with_the_sampler_and_clips_nothing():
    _, policy, _, _ = learn(**{"loss.type": "policy_gradient", "num_minibatches": 2})
    assert policy.score_temperatures == []
    for update in policy.updates:
        assert set(update.column("old")) == {-1.0}
        assert update.metrics_fn.keywords["low"] == update.metrics_fn.keywords["high"] == math.inf


def test_kl_to_go_gives_early_tokens_the_penalties_of_later_ones():
    """log pi - log pi_ref is .25 at each token. Groups of equal rewards have a gradient too."""
    _, policy, reference, _ = learn([group(1.0, 1.0)], **KL_TO_GO)
    assert policy.updates[0].column("advantage") == [-0.5, -1.0, -0.5]
    assert policy.updates[0].column("reference") == [-0.75] * 3
    assert policy.score_temperatures == reference.score_temperatures == [0.7]


@pytest.mark.parametrize("keys", [{"num_minibatches": 2}, {"loss.type": "dppo"}, {"max_policy_lag": 1}])
def test_kl_to_go_scores_the_policy_once_and_never_takes_the_sampler_for_it(keys: dict[str, Any]):
    _, policy, _, _ = learn([group(1.0, 1.0), group(1.0, 1.0, problem=1)], **keys | KL_TO_GO)
    assert policy.score_temperatures == [0.7]
    assert sorted({a for update in policy.updates for a in update.column("advantage")}) == [-1.0, -0.5]


def test_reinforce_pp_normalises_reward_and_penalties_over_tokens():
    c, policy, *_ = learn(preset="reinforce_pp", **{"rewards.kl_coef": 0.4})
    rows = subtract_to_go(GROUPS, [[0.1] * len(r) for r in rollouts_of(GROUPS)], "batch_mean", "batch_std")
    expected = [a for row in rows for a in row[2:]]
    assert c.rewards.kl_to_go
    assert sorted(policy.updates[0].column("advantage")) == pytest.approx(sorted(expected), abs=1e-5)


def test_truncated_rollouts_can_be_left_out_of_the_loss():
    groups = [group(1.0, 0.0, finish_reason="length"), group(1.0, 0.0, problem=1)]
    (update,) = updates_of(groups, **{"loss.mask_truncated": True})
    assert update.num_rollouts == 2
    assert updates_of(groups)[0].num_rollouts == 4


def test_a_step_without_a_signal_is_no_update():
    _, policy, _, stats = learn([group(1.0, 1.0), group(0.0, 0.0, problem=1)])
    assert (policy.updates, stats) == ([], {})


# --- epochs and minibatches


def test_two_epochs_are_two_passes_over_all_rollouts_of_the_step():
    updates = updates_of(**{"num_epochs": 2, "num_minibatches": 2, "loss.kl_coef": 0.1})
    assert [update.num_rollouts for update in updates] == [6, 6, 6, 6]
    passes = [
        [sorted(token for batch in u.batches for token in batch.tokens.tolist()) for u in updates[i : i + 2]]
        for i in (0, 2)
    ]
    assert passes[0] == passes[1]


def test_two_epochs_are_not_on_policy_although_there_is_one_minibatch():
    """The second pass is clipped against the policy before the first one, which is scored once."""
    c, policy, *_ = learn(num_epochs=2)
    assert not c.on_policy
    assert policy.score_temperatures == [0.7]
    assert [set(update.column("old")) for update in policy.updates] == [{-0.5}] * 2
    assert all(update.metrics_fn is not None for update in policy.updates)


@pytest.mark.parametrize("keys", [{"num_epochs": 2}, {"num_minibatches": 2}])
def test_the_logprob_gap_is_checked_and_recorded_before_the_first_update_alone(keys: dict[str, Any]):
    """Later the gap is what was learned since."""
    _, policy, _, stats = learn(**{"max_logprob_gap": 0.2, **keys})
    assert [update.max_logprob_gap for update in policy.updates] == [0.2, float("inf")]
    assert stats["logprob_gap"] == 1.0


def test_with_a_policy_lag_the_logprob_gap_is_not_checked():
    assert [update.max_logprob_gap for update in updates_of(max_policy_lag=1)] == [float("inf")]


@pytest.mark.parametrize(
    ("keys", "on_policy"),
    [({}, True), ({"num_epochs": 2}, False), ({"num_minibatches": 2}, False), ({"max_policy_lag": 1}, False)],
)
def test_on_policy_is_one_update_on_fresh_rollouts(keys: dict[str, Any], on_policy: bool):
    assert Config.of(model="m", **keys).on_policy is on_policy


# --- the loss


def test_the_loss_has_the_settings_of_the_config(monkeypatch: pytest.MonkeyPatch):
    calls: dict[str, Any] = {}
    for name in ("clipped_surrogate", "cispo", "dppo", "importance_corrected", "kl_penalty", "score_centering"):
        monkeypatch.setattr(grpo, name, lambda *a, _n=name, **k: calls.update({_n: (a, k)}) or policy_gradient())
    keys = {
        "num_minibatches": 2,
        "loss.clip_low": 0.1,
        "loss.clip_high": 0.3,
        "loss.clip_ratio_c": 3.0,
        "loss.importance_correction": "product",
        "loss.importance_correction_cap": 5.0,
        "loss.importance_correction_mask": True,
        "loss.kl_coef": 0.1,
        "loss.kl_estimator": "k2",
    }
    grpo.make_loss(Config.of(model="m", **keys))
    assert calls["clipped_surrogate"] == ((0.1, 0.3, "token", 3.0), {"on_policy": False})
    assert calls["importance_corrected"][0][1:] == ("product", 5.0, False, True)
    assert calls["kl_penalty"] == (("k2",), {})
    grpo.make_loss(Config.of(model="m", preset="cispo"))
    assert calls["cispo"] == ((4.0,), {"on_policy": True})
    grpo.make_loss(Config.of(model="m", preset="dppo", **{"loss.clip_low": 0.1, "loss.divergence": "kl"}))
    assert calls["dppo"] == ((0.1, 0.15, "kl"), {})
    assert "score_centering" not in calls
    grpo.make_loss(Config.of(model="m", preset="score_centering"))
    assert calls["score_centering"] == ((None, False), {})
    limit = {"loss.importance_correction": "token", "loss.importance_correction_cap": 3.0, "max_policy_lag": 1}
    grpo.make_loss(Config.of(model="m", preset="score_centering", **limit))
    assert calls["score_centering"] == ((3.0, False), {})
    assert calls["importance_corrected"][0][1:] == ("token", 3.0, True, False)


def test_two_epochs_make_a_loss_that_needs_the_old_column(monkeypatch: pytest.MonkeyPatch):
    calls: list[bool] = []
    monkeypatch.setattr(grpo, "clipped_surrogate", lambda *_, on_policy: calls.append(on_policy))
    for num_epochs in (1, 2):
        grpo.make_loss(Config.of(model="m", num_epochs=num_epochs))
    assert calls == [True, False]


# --- short runs


class Step(NamedTuple):
    """The arguments of `grpo.learn` in one step of a run."""

    policy: Policy
    reference: Policy | None
    groups: Sequence[Group]
    rate: float


def run_steps(sft_model: SftModel, folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> list[Step]:
    """The steps of a short run."""
    steps, real_learn = list[Step](), grpo.learn

    def recorded(c: Any, policy: Any, reference: Any, loss_fn: Any, groups: Any, rate: float) -> Any:
        steps.append(Step(policy, reference, groups, rate))
        return real_learn(c, policy, reference, loss_fn, groups, rate)

    monkeypatch.setattr(grpo, "learn", recorded)
    defaults = {
        "model": str(sft_model(TASK)),
        "task": TASK,
        "steps": 2,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling.max_new_tokens": 24,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 0,
        "precision": "float32",
    }
    train(folder, Config.of(**{**defaults, **keys}))
    return steps


def test_kl_in_reward_is_towards_the_starting_model(
    sft_model: SftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """r - beta (log pi - log pi_ref) of the whole completion: tokens that became likelier cost reward."""
    calls, kl_in_reward = [], grpo.kl_in_reward

    def recorded(groups: Any, policy: Any, reference: Any, kl_coef: float) -> Any:
        calls.append((rollouts_of(groups), policy, reference, kl_coef))
        return kl_in_reward(groups, policy, reference, kl_coef)

    monkeypatch.setattr(grpo, "kl_in_reward", recorded)
    keys = {"rewards.kl_coef": 0.5, "sampling.temperature": 0.7, "rewards.control": "random"}
    run_steps(sft_model, tmp_path / "run", monkeypatch, **keys)
    start = Policy.load(sft_model(TASK), "float32")
    assert len(calls) == 2
    for rollouts, _, reference, kl_coef in calls:
        assert kl_coef == 0.5
        expected = [scores.logprob.tolist() for scores in start.score(rollouts, 0.7)]
        assert all(a == pytest.approx(b, nan_ok=True, abs=1e-5) for a, b in zip(reference, expected, strict=True))
    distances = [
        max(abs(a - b) for x, y in zip(policy, reference, strict=True) for a, b in zip(x, y, strict=True) if a == a)
        for _, policy, reference, _ in calls
    ]
    assert distances[0] < 1e-5 < 1e-3 < distances[1]


@pytest.mark.parametrize("keys", [{"loss.kl_coef": 0.1}, {"rewards.kl_coef": 0.1}])
def test_a_reference_never_builds_an_optimizer(
    sft_model: SftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
):
    steps = run_steps(sft_model, tmp_path / "run", monkeypatch, **keys)
    assert len(steps) == 2
    for step in steps:
        assert step.reference is not None
        assert "learner" not in step.reference.__dict__
        assert "learner" in step.policy.__dict__


def test_without_a_kl_penalty_no_reference_is_loaded(
    sft_model: SftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert [step.reference for step in run_steps(sft_model, tmp_path / "run", monkeypatch)] == [None, None]


def test_two_epochs_of_a_run_are_two_updates_a_step(
    sft_model: SftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (step,) = run_steps(
        sft_model, tmp_path / "run", monkeypatch, steps=1, num_epochs=2, **{"rewards.control": "random"}
    )
    assert step.policy.version == 2


@pytest.mark.fault("verifier hangs")
def test_ungraded_rollouts_are_left_out(sft_model: SftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    grade = grpo.grade_rollouts

    def grade_all_but_first(*args: Any) -> list[Group]:
        return [Group(one.problem, one.rollouts, (Verdict(None, "timeout"), *one.verdicts[1:])) for one in grade(*args)]

    monkeypatch.setattr(grpo, "grade_rollouts", grade_all_but_first)
    steps = run_steps(sft_model, tmp_path / "run", monkeypatch)
    assert [[len(one.rollouts) for one in step.groups] for step in steps] == [[3] * 4] * 2


def test_format_length_and_overlong_rewards_are_part_of_the_shaped_reward(
    sft_model: SftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = {"rewards.format": 0.5, "rewards.length": 0.2, "rewards.overlong_buffer": 20}
    steps = run_steps(sft_model, tmp_path / "run", monkeypatch, **keys)
    assert len(steps) == 2
    for step in steps:
        parts = {name for one in step.groups for verdict in one.verdicts for name in verdict.parts}
        assert {"format", "overlong"} <= parts
        assert any(reward not in (0.0, 0.5, 1.0, 1.5) for one in step.groups for reward in one.rewards)


def test_the_learning_rate_follows_the_schedule(sft_model: SftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps = run_steps(sft_model, tmp_path / "run", monkeypatch, steps=3, **{"optimizer.warmup_steps": 2})
    assert [step.rate for step in steps] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
