"""Groups of config keys with each recipe's own defaults, and presets, which set what a paper sets and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from schoolhouse.algorithms.settings import PRESETS, Optimizer
from schoolhouse.config import BaseConfig, dump, load, lookup
from schoolhouse.recipes import load_recipe, pretrain, recipe_names, sft
from schoolhouse.recipes.grpo import Config
from schoolhouse.types import SchoolError


def config(**values: Any) -> Config:
    return Config.of(model="m", **values)


# --- groups


REQUIRED: dict[str, dict[str, Any]] = {
    "pretrain": {"task": "school"},
    "prm": {"generator": "g"},
    "prm_rl": {"reward_model": "r"},
    "on_policy_distillation": {"teacher": "t"},
    "rejection_sampling": {"teacher": "t"},
}


@pytest.mark.parametrize("name", recipe_names())
def test_a_group_given_in_part_keeps_the_other_defaults_of_the_recipe(name: str, tmp_path: Path):
    """As dotted keys, as a group, in a file and on the command line."""
    cls: type[BaseConfig] = load_recipe(name).config
    values = {**({} if name == "pretrain" else {"model": "m"}), **REQUIRED.get(name, {})}
    default: Any = cls.of(**values)
    expected = default.optimizer.model_copy(update={"learning_rate": 1e-5})
    assert expected != Optimizer(learning_rate=1e-5), "the recipe should have defaults of its own"
    (tmp_path / "dotted.yaml").write_text("optimizer.learning_rate: 1e-5\n")
    (tmp_path / "group.yaml").write_text("optimizer:\n  learning_rate: 1e-5\n")
    arguments = [f"--{key}={value}" for key, value in values.items()]
    made: list[Any] = [
        cls.of(**values, **{"optimizer.learning_rate": 1e-5}),
        cls.of(**values, optimizer={"learning_rate": 1e-5}),
        load(cls, tmp_path / "dotted.yaml", arguments),
        load(cls, tmp_path / "group.yaml", arguments),
        load(cls, None, [*arguments, "--optimizer.learning_rate", "1e-5"]),
    ]
    assert [c.optimizer for c in made] == [expected] * 5
    assert all(c == default.model_copy(update={"optimizer": expected}) for c in made)


def test_a_group_given_as_an_object_is_taken_whole():
    assert sft.Config.of(model="m", optimizer=Optimizer(learning_rate=1e-5)).optimizer == Optimizer(learning_rate=1e-5)


def test_dotted_keys_of_one_group_are_merged():
    c = config(**{"optimizer.learning_rate": 1e-5, "optimizer.adam_beta2": 0.99, "sampling.temperature": 0.7})
    assert (c.optimizer.learning_rate, c.optimizer.adam_beta2, c.optimizer.warmup_steps) == (1e-5, 0.99, 5)
    assert (c.sampling.temperature, c.sampling.max_new_tokens) == (0.7, 128)


def test_a_group_of_the_command_line_is_laid_over_that_of_the_file(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("model: m\noptimizer: {warmup_steps: 9, weight_decay: 0.1}\n")
    c = load(Config, tmp_path / "c.yaml", ["--optimizer.weight_decay", "0.2"])
    assert (c.optimizer.warmup_steps, c.optimizer.weight_decay, c.optimizer.learning_rate) == (9, 0.2, 2e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optimizer.learning_rat": 1e-5},
            "unknown key `learning_rat` in sft.optimizer; did you mean `learning_rate`?",
        ),
        ({"optimizer.warmup_steps": -1}, "`optimizer.warmup_steps` is -1: it should be greater than or equal to 0"),
        ({"optimizer": 3}, "`optimizer` is 3: it should hold `key: value` lines"),
        ({"optimizer.learning_rate.peak": 3}, "`optimizer.learning_rate` is {'peak': 3}: it should be a valid number"),
    ],
)
def test_a_mistake_in_a_group_is_named_by_its_dotted_key(values: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(SchoolError) as refused:
        sft.Config.of(model="m", **values)
    assert message in str(refused.value)


def test_the_model_of_pretraining_is_a_group_too():
    c = pretrain.Config.of(task="school", **{"model.num_layers": 2})
    assert c.model == pretrain.Model(num_layers=2)


# --- presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_with_what_it_sets(name: str):
    values = config(preset=name).model_dump()
    assert {key: lookup(values, key) for key in PRESETS[name]} == dict(PRESETS[name])


PUBLISHED = {
    # advantage.baseline, advantage.scale_rewards, loss.aggregation, loss.importance_sampling_level, loss.type,
    # loss.kl_coef, rewards.kl_coef, loss.clip_low, loss.clip_high
    "grpo": ("mean", "group_std", "sequence_mean", "token", "clip", 0.04, 0.0, 0.2, 0.2),
    "dr_grpo": ("mean", "none", "constant", "token", "clip", 0.0, 0.0, 0.2, 0.2),
    "dapo": ("mean", "group_std", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.28),
    "rloo": ("leave_one_out", "none", "sequence_sum", "token", "clip", 0.0, 0.03, 0.2, 0.28),
    "reinforce_pp": ("batch_mean", "batch_std", "sequence_mean", "token", "clip", 0.0, 0.001, 0.2, 0.2),
    "gspo": ("mean", "group_std", "sequence_mean", "sequence", "clip", 0.0, 0.0, 3e-4, 4e-4),
    "cispo": ("mean", "group_std", "token_mean", "token", "cispo", 0.0, 0.0, 0.2, 4.0),
    "dppo": ("mean", "none", "constant", "token", "dppo", 0.0, 0.0, 0.15, 0.15),
    "score_centering": ("mean", "none", "token_mean", "token", "policy_gradient", 0.0, 0.0, 0.2, 0.28),
    "maxrl": ("mean", "group_mean", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.28),
    "lite_ppo": ("mean", "batch_std", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.2),
    "reinforce": ("none", "none", "sequence_sum", "token", "clip", 0.0, 0.0, 0.2, 0.28),
    "default": ("mean", "none", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.28),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_what_its_paper_says(name: str):
    c = config(preset=name)
    found = (
        c.advantage.baseline,
        c.advantage.scale_rewards,
        c.loss.aggregation,
        c.loss.importance_sampling_level,
        c.loss.type,
        c.loss.kl_coef,
        c.rewards.kl_coef,
        c.loss.clip_low,
        c.loss.clip_high,
    )
    assert found == PUBLISHED[name]
    assert c.rewards.kl_to_go is (name == "reinforce_pp")
    assert (c.dynamic_sampling, c.loss.mask_truncated) == ((3, True) if name == "dapo" else (0, False))


def test_a_written_value_wins_over_the_preset_and_leaves_its_others():
    c = config(preset="dapo", **{"loss.clip_high": 0.3})
    assert (c.loss.clip_high, c.loss.mask_truncated) == (0.3, True)


def test_a_config_that_was_written_out_reads_back_the_same(tmp_path: Path):
    c = config(preset="rloo", **{"rewards.kl_coef": 0.0})
    (tmp_path / "config.yaml").write_text(dump(c))
    assert load(Config, tmp_path / "config.yaml") == c


def test_another_preset_over_a_written_out_config_is_refused_key_by_key(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(dump(config(preset="dapo")))
    with pytest.raises(SchoolError) as refused:
        load(Config, tmp_path / "config.yaml", ["--preset", "dr_grpo"])
    lines = str(refused.value).splitlines()
    assert {line.split("`")[1] for line in lines} == {
        "advantage.scale_rewards",
        "loss.aggregation",
        "loss.clip_high",
        "dynamic_sampling",
        "loss.mask_truncated",
    }
    choice = "`loss.clip_high` is 0.28 here, but 0.2 in `--preset dr_grpo`: choose one with --loss.clip_high"
    assert any(choice in line for line in lines)


def test_another_preset_over_a_written_out_config_needs_all_its_keys_chosen(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(dump(config(preset="dapo")))
    arguments = "--preset dr_grpo --advantage.scale_rewards none --loss.aggregation constant --loss.clip_high 0.2"
    others = "--dynamic_sampling 0 --loss.mask_truncated false"
    assert load(Config, tmp_path / "config.yaml", f"{arguments} {others}".split()) == config(preset="dr_grpo")


def test_the_preset_of_a_file_may_be_named_again(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("model: m\npreset: dapo\nloss: {clip_high: 0.3}\n")
    assert load(Config, tmp_path / "config.yaml", ["--preset", "dapo"]).loss.clip_high == 0.3


def test_another_preset_over_a_file_without_its_keys_is_that_preset(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("model: m\nsteps: 3\n")
    assert load(Config, tmp_path / "config.yaml", ["--preset", "dapo"]) == config(preset="dapo", steps=3)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(SchoolError, match="unknown preset `dapoo`; did you mean `dapo`"):
        config(preset="dapoo")


@pytest.mark.parametrize("preset", [None, 3, ["dapo"], {"dapo": 1}])
def test_a_preset_that_is_no_name_is_refused(preset: object):
    with pytest.raises(SchoolError, match="unknown preset"):
        config(preset=preset)


# --- keys that contradict one another


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rewards.kl_to_go": True},
            "`rewards.kl_to_go` is true, but there is no KL in the reward; set `rewards.kl_coef`",
        ),
        (
            {"rewards.kl_to_go": True, "rewards.kl_coef": 0.1, "advantage.scale_rewards": "group_mean"},
            "`rewards.kl_to_go` is true, but `advantage.scale_rewards` is group_mean; set `advantage.scale_rewards` to "
            "batch_std or none",
        ),
        (
            {"advantage.baseline": "batch_mean", "advantage.scale_rewards": "group_mean"},
            "`advantage.baseline` is batch_mean, but `advantage.scale_rewards` is group_mean; set "
            "`advantage.scale_rewards` to batch_std or none",
        ),
        (
            {"loss.type": "dppo", "loss.importance_correction": "token"},
            "`loss.type` dppo already divides by the probability of the sampler; set `loss.importance_correction` "
            "to none",
        ),
        (
            {"loss.type": "dppo", "loss.clip_ratio_c": 3.0},
            "`loss.clip_ratio_c` has no effect on `loss.type` dppo; leave `loss.clip_ratio_c` out",
        ),
        (
            {"loss.score_centering": 128},
            "`loss.score_centering` does not fit `loss.type` clip; set `loss.type` to policy_gradient",
        ),
        (
            {"preset": "score_centering", "loss.importance_correction": "product"},
            "`loss.score_centering` needs one weight per token, but `loss.importance_correction` is product; set",
        ),
        (
            {"preset": "score_centering", "precision": "exact"},
            "so sampler and learner have equal probabilities and there is no drift; set `loss.score_centering` to 0",
        ),
        (
            {"loss.divergence": "kl"},
            "`loss.divergence` has no effect on `loss.type` clip; leave `loss.divergence` out, or set "
            "`loss.type` to dppo",
        ),
        (
            {"max_policy_lag": 1, "dynamic_sampling": 1},
            "`dynamic_sampling` and `max_policy_lag` cannot both be above 0; set one of them to 0",
        ),
        (
            {"advantage.baseline": "none", "dynamic_sampling": 1},
            "set `advantage.baseline` to mean or leave_one_out, or set `dynamic_sampling` to 0",
        ),
        (
            {"advantage.baseline": "none", "advantage.scale_rewards": "batch_std"},
            "`advantage.scale_rewards` is batch_std, but `advantage.baseline` is none; set",
        ),
        (
            {"advantage.baseline": "none", "advantage.scale_rewards": "group_std"},
            "`advantage.scale_rewards` is group_std, but `advantage.baseline` is none; set",
        ),
        (
            {"advantage.baseline": "batch_mean", "advantage.scale_rewards": "group_std"},
            "`advantage.baseline` is batch_mean, but `advantage.scale_rewards` is group_std; set",
        ),
        (
            {"advantage.normalize_each_reward": True},
            "there is only one reward; set `rewards.format` or `rewards.language`",
        ),
        (
            {"advantage.normalize_each_reward": True, "rewards.format": 0.2, "rewards.length": 0.1},
            "and leave out `rewards.length` and `rewards.overlong_buffer`",
        ),
        ({"loss.importance_sampling_level": "sequence"}, "set `loss.aggregation` to sequence_mean"),
        (
            {"loss.type": "cispo", "loss.importance_sampling_level": "sequence", "loss.aggregation": "sequence_mean"},
            "`loss.type` cispo needs one ratio per token; set `loss.importance_sampling_level` to token",
        ),
        ({"loss.type": "cispo", "loss.clip_ratio_c": 3.0}, "`loss.clip_ratio_c` has no effect on `loss.type` cispo"),
        ({"loss.kl_coef": 0.1, "loss.kl_estimator": "k1"}, "set `loss.kl_estimator` to k2 or k3"),
        ({"loss.ref_model_sync_steps": 400}, "or set `loss.ref_model_sync_steps` to 0"),
        (
            {"loss.importance_correction": "token", "precision": "exact"},
            "have equal probabilities; set `loss.importance_correction` to none",
        ),
        ({"rewards.script": "latn", "rewards.language": 1.0}, "unknown script `latn`; did you mean `latin`"),
        ({"rewards.language": 1.0}, "only one of `rewards.script` and `rewards.language` is set"),
        (
            {"rewards.overlong_buffer": 64, "sampling.max_new_tokens": 64},
            "`rewards.overlong_buffer` is 64; set it below `sampling.max_new_tokens`, which is 64",
        ),
    ],
)
def test_keys_that_contradict_one_another_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(SchoolError) as refused:
        config(**values)
    assert message in str(refused.value)
