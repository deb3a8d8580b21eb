"""`preset` sets what a paper sets, and nothing that was given."""

import pytest

from schoolhouse.algorithms.settings import PRESETS
from schoolhouse.config import Source, build, dump, load, lookup
from schoolhouse.recipes.grpo import Config
from schoolhouse.types import SchoolError


def config(**given: object) -> Config:
    return build(Config, Source({"model": "m", **given}, {}))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_config_with_what_it_sets(name: str):
    made = config(preset=name)
    values = made.model_dump()
    assert {key: lookup(values, key) for key in PRESETS[name]} == dict(PRESETS[name])


PUBLISHED = {
    # baseline, scale, aggregate, level, loss, kl, kl_in_reward, clip_low, clip_high
    "grpo": ("mean", "group_std", "sequence_mean", "token", "clip", 0.04, 0.0, 0.2, 0.2),
    "dr_grpo": ("mean", "none", "constant", "token", "clip", 0.0, 0.0, 0.2, 0.2),
    "dapo": ("mean", "group_std", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.28),
    "rloo": ("leave_one_out", "none", "sequence_sum", "token", "clip", 0.0, 0.03, 0.2, 0.28),
    "reinforce_pp": ("batch_mean", "batch_std", "sequence_mean", "token", "clip", 0.0, 0.001, 0.2, 0.2),
    "gspo": ("mean", "group_std", "sequence_mean", "sequence", "clip", 0.0, 0.0, 3e-4, 4e-4),
    "cispo": ("mean", "group_std", "token_mean", "token", "cispo", 0.0, 0.0, 0.2, 4.0),
    "lite_ppo": ("mean", "batch_std", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.2),
    "reinforce": ("none", "none", "sequence_sum", "token", "clip", 0.0, 0.0, 0.2, 0.28),
    "ours": ("mean", "none", "token_mean", "token", "clip", 0.0, 0.0, 0.2, 0.28),
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
    assert (c.dynamic_sampling, c.loss.mask_truncated) == ((3, True) if name == "dapo" else (0, False))


def test_what_is_given_wins():
    assert config(preset="dapo", **{"loss.clip_high": 0.3}).loss.clip_high == 0.3


def test_a_config_that_was_written_out_reads_back_the_same(tmp_path):
    made = config(preset="rloo", **{"rewards.kl_coef": 0.0})
    (tmp_path / "config.yaml").write_text(dump(made))
    assert load(Config, tmp_path / "config.yaml") == made


def test_another_preset_over_a_written_out_config_changes_more_than_its_name_or_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(dump(config(preset="dapo")))
    with pytest.raises(SchoolError) as refused:
        load(Config, tmp_path / "config.yaml", ["--preset", "dr_grpo"])
    said = str(refused.value).splitlines()
    assert {line.split("`")[1] for line in said} == {
        "advantage.scale_rewards",
        "loss.aggregation",
        "loss.clip_high",
        "dynamic_sampling",
        "loss.mask_truncated",
    }
    assert "`loss.clip_high` is 0.28 here, but 0.2 in `--preset dr_grpo`: choose one with --loss.clip_high" in str(
        refused.value
    )
    words = [
        "--preset",
        "dr_grpo",
        "--advantage.scale_rewards",
        "none",
        "--loss.aggregation",
        "constant",
        "--loss.clip_high",
        "0.2",
    ]
    made = load(Config, tmp_path / "config.yaml", [*words, "--dynamic_sampling", "0", "--loss.mask_truncated", "false"])
    assert made == config(preset="dr_grpo")


def test_the_preset_that_a_file_names_may_be_named_again(tmp_path):
    (tmp_path / "config.yaml").write_text("model: m\npreset: dapo\nloss: {clip_high: 0.3}\n")
    assert load(Config, tmp_path / "config.yaml", ["--preset", "dapo"]).loss.clip_high == 0.3


def test_another_preset_over_a_file_that_says_nothing_of_it_is_that_preset(tmp_path):
    (tmp_path / "config.yaml").write_text("model: m\nsteps: 3\n")
    assert load(Config, tmp_path / "config.yaml", ["--preset", "dapo"]) == config(preset="dapo", steps=3)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(SchoolError, match="did you mean `dapo`"):
        config(preset="dappo")


@pytest.mark.parametrize("like", [None, 3, ["dapo"], {"dapo": 1}])
def test_what_is_no_name_is_refused(like: object):
    with pytest.raises(SchoolError, match="unknown preset"):
        config(preset=like)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"advantage.baseline": "batch_mean", "advantage.scale_rewards": "group_std"}, "batch_std"),
        (
            {"loss.type": "cispo", "loss.importance_sampling_level": "sequence", "loss.aggregation": "sequence_mean"},
            "importance_sampling_level to `token`",
        ),
        ({"rewards.overlong_buffer": 64, "sampling.max_new_tokens": 64}, "less than sampling.max_new_tokens"),
        ({"advantage.baseline": "none", "advantage.scale_rewards": "batch_std"}, "needs a baseline"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], reason: str):
    with pytest.raises(SchoolError, match=reason):
        config(**given)
